//! Paths that Compose files name. Pure: nothing is looked up.

use std::path::{Component, Path, PathBuf};

use super::refusal::EditRefusal;

/// The path of a local file; anything that Compose might fetch is refused.
pub(super) fn local(reference: &str, by: &Path, dir: &Path) -> Result<PathBuf, EditRefusal> {
    let first = reference.split('/').next().unwrap_or_default();
    if reference.is_empty() || first.contains(':') || first == "github.com" || reference == "-" {
        return Err(EditRefusal::Remote {
            file: by.to_owned(),
            reference: reference.chars().take(200).collect(),
        });
    }
    Ok(clean(&dir.join(reference)))
}

/// Removes `.` and `..` by the text alone, as Compose (Go's `filepath.Join`) does.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => cleaned.push(component),
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_compose_might_fetch_is_refused_and_paths_are_cleaned() {
        let read = |text: &str| local(text, Path::new("c.yaml"), Path::new("/srv/shop"));
        for text in [
            "",
            "-",
            "https://example.com/c.yaml",
            "oci://registry.example/acme/stack",
            "git@example.com:acme/stack.git",
            "github.com/acme/stack",
            "ssh://git@example.com/acme/stack.git#main:dir",
        ] {
            assert!(matches!(read(text), Err(EditRefusal::Remote { .. })), "{text}");
        }
        for (text, path) in [
            ("./a/../b.yaml", "/srv/shop/b.yaml"),
            ("../common/c.yaml", "/srv/common/c.yaml"),
            ("/etc/c.yaml", "/etc/c.yaml"),
            ("a/b:c.yaml", "/srv/shop/a/b:c.yaml"),
        ] {
            assert_eq!(read(text).unwrap(), Path::new(path));
        }
    }
}
