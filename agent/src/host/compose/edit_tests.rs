//! The edit as a property: whatever stands around the tag stays.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::locate::{Bytes, Start};
use super::*;
use deploy_proto::image::ImageRef;

fn sources(files: &[(&str, Vec<u8>)]) -> Sources {
    let dir = Path::new("/srv/shop");
    let mut bytes: Bytes = [(dir.join(".env"), None)].into_iter().collect();
    for (name, content) in files {
        bytes.insert(dir.join(name), Some(content.clone()));
    }
    Sources {
        start: Start {
            dir: dir.to_owned(),
            main: vec![dir.join("compose.yaml")],
            dotenv: dir.join(".env"),
        },
        files: bytes,
    }
}

fn model(images: &[(String, String)]) -> Model {
    let services: serde_json::Map<String, serde_json::Value> = images
        .iter()
        .map(|(name, image)| (name.clone(), serde_json::json!({ "image": image })))
        .collect();
    Model::parse(serde_json::json!({ "services": services }).to_string().as_bytes()).unwrap()
}

fn wanted(name: &str, image: &str) -> std::collections::BTreeMap<deploy_proto::names::ServiceName, ImageRef> {
    [(name.parse().unwrap(), image.parse().unwrap())]
        .into_iter()
        .collect()
}

/// How a service is written; `@` stands for its image.
const SHAPES: [&str; 12] = [
    "    image: @\n",
    "    image:    @   # image: @\n",
    "    'image': '@'\n",
    "    \"image\": \"@\"\t# ü\n",
    "    image:\n      @\n",
    "    # image: @\n    restart: always\n    image: @\n",
    "    image: &a{n} @\n    labels: {x: \"日本\", image: 'x:1'}\n",
    "    environment:\n      - IMAGE=x:1\n    image: !!str @\n",
    "    {image: '@', restart: \"no\"}\n",
    "    ? image\n    : @\n",
    "    build: {args: {image: 'x:1'}}\n\n\n    image: \"@\"\n",
    "    command: |\n      image: x:1\n    image: @\n",
];

/// The document, with every service's image but the chosen one's at `v1`.
fn document(shapes: &[usize], chosen: usize, tag: &str, line_end: &str, bom: bool, last: bool) -> Vec<u8> {
    let mut text = String::from("services:\n");
    for (number, shape) in shapes.iter().enumerate() {
        let tag = if number == chosen { tag } else { "v1" };
        // In comments the tag never changes.
        let body = SHAPES[*shape]
            .replace("# image: @", "# image: acme/old:v0")
            .replace('@', &format!("acme/s{number}:{tag}"))
            .replace("{n}", &number.to_string());
        text.push_str(&format!("  s{number}:\n{body}"));
    }
    if !last {
        text.truncate(text.trim_end_matches('\n').len());
    }
    let text = text.replace('\n', line_end);
    let mut bytes = if bom { vec![0xef, 0xbb, 0xbf] } else { Vec::new() };
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

proptest! {
    #[test]
    fn all_bytes_but_the_tags_stay(
        shapes in proptest::collection::vec(0..SHAPES.len(), 1..12),
        chosen in any::<proptest::sample::Index>(),
        tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,40}",
        pinned in any::<bool>(),
        line_end in proptest::sample::select(vec!["\n", "\r\n"]),
        bom in any::<bool>(),
        last in any::<bool>(),
    ) {
        let chosen = chosen.index(shapes.len());
        let tag = if pinned { format!("{tag}@sha256:{}", "ab".repeat(32)) } else { tag };
        let before = document(&shapes, chosen, "v1", line_end, bom, last);
        let expected = document(&shapes, chosen, &tag, line_end, bom, last);
        let images: Vec<(String, String)> =
            (0..shapes.len()).map(|number| (format!("s{number}"), format!("acme/s{number}:v1"))).collect();
        let want = wanted(&format!("s{chosen}"), &format!("acme/s{chosen}:{tag}"));
        let edit = edit(&sources(&[("compose.yaml", before.clone())]), &model(&images), &want).unwrap();
        let after = edit.files.first().map_or(&before, |file| &file.after);
        prop_assert_eq!(String::from_utf8_lossy(after), String::from_utf8_lossy(&expected));
    }

    #[test]
    fn no_bytes_make_the_edit_panic_or_write_anything_else(bytes in proptest::collection::vec(any::<u8>(), 0..200), env in "[A-Z=$\\{\\}:\"' #\n-]{0,60}") {
        let mut yaml = b"services:\n  web:\n    image: a:$T\n".to_vec();
        yaml.extend_from_slice(&bytes);
        let all = sources(&[("compose.yaml", yaml), (".env", env.into_bytes())]);
        // Whatever comes of it, it comes back.
        drop(edit(&all, &model(&[("web".to_owned(), "a:v1".to_owned())]), &wanted("web", "a:v2")));
    }
}

#[test]
fn a_file_of_ten_thousand_services_is_edited_in_time() {
    let mut text = String::from("services:\n");
    let mut images = Vec::new();
    for number in 0..10_000 {
        text.push_str(&format!(
            "  s{number}:\n    image: acme/s{number}:v1\n    restart: always\n"
        ));
        images.push((format!("s{number}"), format!("acme/s{number}:v1")));
    }
    let begun = std::time::Instant::now();
    let edit = edit(
        &sources(&[("compose.yaml", text.into_bytes())]),
        &model(&images),
        &wanted("s9999", "acme/s9999:v2"),
    )
    .unwrap();
    assert_eq!(edit.files[0].path, PathBuf::from("/srv/shop/compose.yaml"));
    assert_eq!(edit.files[0].lines[0].line, 3 * 9999 + 3);
    assert!(
        begun.elapsed() < std::time::Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
}
