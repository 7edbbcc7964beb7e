//! Tests of `credentials`: which entry counts, and what stands in it.

use super::*;

fn config(json: &str) -> DockerConfig {
    serde_json::from_str(json).unwrap()
}

fn stored(json: &str, repository: &str) -> Option<Credential> {
    let server = server_name(repository);
    match config(json).source(&server) {
        Source::Stored(login) => login.credential(&server).unwrap(),
        Source::Nothing => None,
        Source::Helper(name) => panic!("helper {name}"),
    }
}

fn user_and_password(credential: Credential) -> (String, String) {
    let sent = DockerCredentials::from(credential);
    (sent.username.unwrap(), sent.password.unwrap())
}

#[test]
fn an_entry_is_found_by_host_whatever_scheme_and_path_it_has() {
    let auth = STANDARD.encode("ann:s3:cret");
    for (entry, repository) in [
        ("registry.example", "registry.example/acme/api"),
        ("https://registry.example", "registry.example/acme/api"),
        ("https://registry.example/v1/", "registry.example/acme/api"),
        ("127.0.0.1:5000", "127.0.0.1:5000/x"),
        ("https://index.docker.io/v1/", "nginx"),
        ("https://index.docker.io/v1/", "docker.io/acme/api"),
        ("docker.io", "acme/api"),
    ] {
        let json = format!(r#"{{"auths": {{"{entry}": {{"auth": "{auth}"}}, "other.example": {{}}}}}}"#);
        let found = stored(&json, repository).unwrap_or_else(|| panic!("{entry} for {repository}"));
        assert_eq!(user_and_password(found), ("ann".to_owned(), "s3:cret".to_owned()));
    }
    let other = format!(r#"{{"auths": {{"registry.example:5000": {{"auth": "{auth}"}}}}}}"#);
    assert_eq!(stored(&other, "registry.example/acme/api"), None);
}

#[test]
fn every_form_of_a_login_is_read() {
    let of = |entry: &str| {
        stored(
            &format!(r#"{{"auths": {{"r.example": {entry}}}}}"#),
            "r.example/x",
        )
    };
    assert_eq!(of("{}"), None);
    assert_eq!(of(r#"{"auth": ""}"#), None);
    assert_eq!(
        user_and_password(of(r#"{"username": "ann", "password": "p"}"#).unwrap()),
        ("ann".to_owned(), "p".to_owned())
    );
    let token = DockerCredentials::from(of(r#"{"auth": "YTpi", "identitytoken": "tok"}"#).unwrap());
    assert_eq!(
        (token.identitytoken.as_deref(), token.password),
        (Some("tok"), None)
    );
    let login: Login = serde_json::from_str(r#"{"auth": "no base64"}"#).unwrap();
    assert!(login.credential("r.example").is_err());
}

#[test]
fn a_registrys_own_helper_counts_before_the_store_and_the_store_before_the_file() {
    let json = r#"{"auths": {"a.example": {"auth": "YTpi"}}, "credsStore": "pass",
                   "credHelpers": {"b.example": "ecr-login"}}"#;
    let name = |server| match config(json).source(server) {
        Source::Helper(name) => name.to_owned(),
        Source::Stored(_) | Source::Nothing => panic!("no helper for {server}"),
    };
    assert_eq!(
        (name("a.example").as_str(), name("b.example").as_str()),
        ("pass", "ecr-login")
    );
}

#[test]
fn a_credential_hides_its_secret() {
    let credential = stored(
        r#"{"auths": {"r.example": {"auth": "YW5uOnMzY3JldA=="}}}"#,
        "r.example/x",
    )
    .unwrap();
    assert_eq!(format!("{credential:?}"), "Credential(r.example, [hidden])");
}
