//! ACCEPTANCE rows 41, 42 and 46 for one file.
#![expect(clippy::disallowed_methods, reason = "tests make the files that a host has")]

use super::*;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

fn folder_with(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_is_replaced_once_and_again_without_a_trace() {
    let (dir, path) = folder_with("compose.yaml", b"old");
    assert_eq!(replace(&path, b"new", b"old").unwrap(), Replaced::Written);
    assert_eq!(replace(&path, b"new", b"old").unwrap(), Replaced::AlreadyThere);
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(names(dir.path()), ["compose.yaml"]);
}

#[test]
fn a_file_that_a_person_edited_meanwhile_is_left_alone() {
    let (dir, path) = folder_with("compose.yaml", b"by hand");
    let error = replace(&path, b"new", b"old").unwrap_err();
    assert!(matches!(error, FilesError::EditedMeanwhile { .. }), "{error}");
    assert_eq!(Problem::from(&error).code, Code::Edited);
    assert_eq!(fs::read(&path).unwrap(), b"by hand");
    assert_eq!(names(dir.path()), ["compose.yaml"]);
}

#[test]
fn mode_and_owner_stay() {
    let (_dir, path) = folder_with("compose.yaml", b"old");
    let root = rustix::process::geteuid().is_root();
    if root {
        chown(&path, Some(12_345), Some(54_321)).unwrap();
    }
    for mode in [0o640, 0o444, 0o4755] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let old = fs::read(&path).unwrap();
        replace(&path, format!("{mode}").as_bytes(), &old).unwrap();
        let now = fs::metadata(&path).unwrap();
        assert_eq!(now.mode() & 0o7777, mode);
        if root {
            assert_eq!((now.uid(), now.gid()), (12_345, 54_321));
        }
    }
}

#[test]
fn a_symbolic_link_stays_and_its_target_is_replaced() {
    let (dir, path) = folder_with("real.yaml", b"old");
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("compose.yaml");
    symlink(&path, &link).unwrap();
    replace(&link, b"new", b"old").unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), path);
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!((names(elsewhere.path()).len(), names(dir.path()).len()), (1, 1));
}

#[test]
fn what_a_crash_left_beside_it_is_removed_and_nothing_else() {
    let (dir, path) = folder_with("compose.yaml", b"old");
    let not_ours = [
        ".deploy-agent-compose.yaml",
        ".deploy-agent-compose.yaml.new.bak",
        ".deploy-agent-compose.yaml.old",
        ".deploy-agent-other.yaml.new",
        "mine",
    ];
    for name in not_ours.iter().chain(&[".deploy-agent-compose.yaml.new"]) {
        fs::write(dir.path().join(name), b"x").unwrap();
    }
    let mut left = [&not_ours[..], &["compose.yaml"]].concat();
    left.sort_unstable();
    replace(&path, b"new", b"old").unwrap();
    assert_eq!(names(dir.path()), left);

    fs::write(dir.path().join(".deploy-agent-compose.yaml.new"), b"half").unwrap();
    remove_leftover(&path);
    assert_eq!(names(dir.path()), left);
}

#[test]
fn what_is_no_leftover_of_ours_stands_in_the_way_and_stays() {
    let (dir, path) = folder_with("compose.yaml", b"old");
    let name = ".deploy-agent-compose.yaml.new";
    let elsewhere = dir.path().join("theirs");
    fs::write(&elsewhere, b"theirs").unwrap();
    symlink(&elsewhere, dir.path().join(name)).unwrap();
    remove_leftover(&path);
    assert!(replace(&path, b"new", b"old").is_err());
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read(&elsewhere).unwrap(), b"theirs");
    assert_eq!(names(dir.path()), [name, "compose.yaml", "theirs"]);
}

#[test]
fn bytes_that_are_there_already_are_brought_to_the_disk_again() {
    let (_dir, path) = folder_with("compose.yaml", b"new");
    let before = fs::metadata(&path).unwrap().ino();
    assert_eq!(replace(&path, b"new", b"old").unwrap(), Replaced::AlreadyThere);
    assert_ne!(
        fs::metadata(&path).unwrap().ino(),
        before,
        "only flushed, not written"
    );
}

#[test]
fn what_cannot_be_read_is_named() {
    let (dir, path) = folder_with("compose.yaml", &vec![b'#'; 2 * 1024 * 1024 + 1]);
    assert!(matches!(read(&path).unwrap_err(), FilesError::TooLarge { .. }));
    assert!(matches!(
        read(dir.path()).unwrap_err(),
        FilesError::NotAFile { .. }
    ));
    let missing = dir.path().join("none");
    assert!(matches!(read(&missing).unwrap_err(), FilesError::Missing { .. }));
    assert!(matches!(
        replace(&missing, b"", b"").unwrap_err(),
        FilesError::Missing { .. }
    ));
}

#[test]
fn a_file_system_that_takes_no_new_file_is_a_clear_error_and_nothing_changes() {
    // sysfs lets nobody, not even root, create a file, and its files are regular and readable.
    let path = Path::new("/sys/kernel/uevent_seqnum");
    let old = fs::read(path).unwrap();
    let error = replace(path, b"new", &old).unwrap_err();
    assert!(
        matches!(error, FilesError::Denied { .. } | FilesError::ReadOnly { .. }),
        "{error}"
    );
    let problem = Problem::from(&error);
    assert_eq!(problem.code, Code::HostUnfit);
    assert!(problem.hint.is_some());
}

#[test]
fn every_cause_has_its_own_words_and_a_hint() {
    for (errno, code, words) in [
        (rustix::io::Errno::ROFS, Code::HostUnfit, "read-only file system"),
        (rustix::io::Errno::ACCESS, Code::HostUnfit, "may not replace"),
        (rustix::io::Errno::PERM, Code::HostUnfit, "may not replace"),
        (rustix::io::Errno::NOSPC, Code::HostUnfit, "no space is left"),
        (rustix::io::Errno::DQUOT, Code::HostUnfit, "no space is left"),
        (rustix::io::Errno::BUSY, Code::HostUnfit, "mounted by itself"),
        (rustix::io::Errno::IO, Code::Internal, "failed to replace"),
    ] {
        let problem = Problem::from(&FilesError::of(
            "replace",
            Path::new("/srv/shop/c.yaml"),
            errno.into(),
        ));
        assert_eq!(problem.code, code, "{errno}");
        assert!(problem.detail.contains(words), "{}", problem.detail);
        assert!(problem.hint.is_some() || code == Code::Internal);
    }
}
