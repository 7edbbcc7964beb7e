//! Models: what is read, in which order services start, and which differences are named.

use super::super::difference::{beyond, differences};
use super::*;
use deploy_proto::image::ImageRef;
use serde_json::json;

fn model(services: &Value) -> Model {
    Model::parse(
        json!({"name": "shop", "services": services, "networks": {"a": 1}})
            .to_string()
            .as_bytes(),
    )
    .unwrap()
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

#[test]
fn what_matters_for_a_deployment_is_read() {
    let model = model(&json!({"web": {
        "image": "acme/web:v1", "build": {"context": "."}, "container_name": "w", "profiles": ["x"], "restart": "always",
        "depends_on": {"db": {"condition": "service_healthy", "required": true}},
        "healthcheck": {"test": ["CMD", "true"], "interval": "30s"},
        "ports": [{"mode": "ingress", "target": 80, "published": "8080", "protocol": "tcp"}, {"target": 81}],
    }, "off": {"healthcheck": {"disable": true}}, "none": {"healthcheck": {"test": ["NONE"]}}, "db": {}}));
    let web = &model.services[&name("web")];
    assert_eq!(web.image.as_deref(), Some("acme/web:v1"));
    assert_eq!(web.depends_on[&name("db")], Condition::Healthy);
    assert_eq!((web.healthcheck, web.has_build), (Healthcheck::Defined, true));
    assert_eq!(
        (web.published.len(), web.published[0].published.as_str()),
        (1, "8080")
    );
    assert_eq!(
        (web.container_name.as_deref(), web.restart.as_str()),
        (Some("w"), "always")
    );
    assert_eq!(model.services[&name("off")].healthcheck, Healthcheck::Disabled);
    assert_eq!(model.services[&name("none")].healthcheck, Healthcheck::Disabled);
    assert_eq!(model.services[&name("db")].restart, "no");
}

#[test]
fn no_secret_stays_in_a_model_or_an_error() {
    let model = model(&json!({"web": {"image": "a", "environment": {"PASSWORD": "canary"}}}));
    assert!(!format!("{model:?}").contains("canary"));
    for text in ["{\"services\": {\"web\": canary", "{\"canary\": 1}"] {
        let error = Model::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(!error.contains("canary"), "{error}");
    }
}

#[test]
fn services_start_after_what_they_depend_on() {
    let on = |names: &[&str]| -> Value {
        let map: serde_json::Map<String, Value> = names
            .iter()
            .map(|name| ((*name).to_owned(), json!({"condition": "service_started"})))
            .collect();
        json!({ "depends_on": map })
    };
    let model = model(&json!({"a": on(&["m"]), "m": on(&["z"]), "z": {}, "c": on(&["a", "z"]), "b": {}}));
    let ordered = |names: &[&str]| -> Vec<String> {
        let set = names.iter().map(|text| name(text)).collect();
        model
            .in_start_order(&set)
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(ordered(&["a", "b", "c", "m", "z"]), ["z", "m", "a", "b", "c"]);
    // `m` is not among them, and still puts `z` before `a`.
    assert_eq!(ordered(&["a", "z"]), ["z", "a"]);
}

#[test]
fn every_difference_is_named() {
    let before = model(
        &json!({"web": {"image": "a:1", "environment": {"X": "1"}}, "old": {}, "db": {"image": "d:1"}}),
    );
    let after = model(
        &json!({"web": {"image": "a:2", "environment": {"X": "2"}}, "new": {}, "db": {"image": "d:1"}}),
    );
    let words: Vec<String> = differences(&before, &after)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        words,
        [
            "service new, which was not there",
            "service old, which is gone",
            "the image of web from a:1 to a:2",
            "`environment` of web"
        ]
    );
    assert_eq!(differences(&before, &before), []);
}

#[test]
fn an_edit_is_held_to_the_images_it_was_to_write() {
    let before = model(&json!({"web": {"image": "a:1"}, "db": {"image": "d:1"}}));
    let after = model(&json!({"web": {"image": "a:2"}, "db": {"image": "d:1"}}));
    let images = |text: &str| {
        [(name("web"), text.parse::<ImageRef>().unwrap())]
            .into_iter()
            .collect()
    };
    assert_eq!(beyond(&before, &after, &images("a:2")), []);
    assert_eq!(beyond(&before, &after, &images("a:3")).len(), 1);
    assert_eq!(beyond(&before, &before, &images("a:3")).len(), 1);
    assert_eq!(beyond(&before, &after, &BTreeMap::new()).len(), 1);
    assert_eq!(beyond(&before, &before, &images("a:1")), []);
}

#[test]
fn the_stop_grace_period_is_read_as_compose_prints_it() {
    for (text, millis) in [
        ("10s", 10_000),
        ("1m40s", 100_000),
        ("1h0m0s", 3_600_000),
        ("1.5s", 1_500),
        ("500ms", 500),
        ("0s", 0),
        ("soon", 10_000),
        ("5", 10_000),
    ] {
        let model = model(&json!({"web": {"stop_grace_period": text}}));
        let read = model.services[&name("web")].stop_grace_period;
        assert_eq!(read.as_millis(), millis, "{text}");
    }
    let silent = model(&json!({"web": {}}));
    assert_eq!(silent.services[&name("web")].stop_grace_period.as_secs(), 10);
}
