//! Who else may write or read the files that the agent trusts.
//!
//! The public keys and the allow-lists are authority: whoever can write them can deploy. They are no secret, so all may
//! read them. Private keys may be read by their owner alone.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::values::Refusal;

/// What the mode of a file or folder of the configuration may not have: write for group or others.
const AUTHORITY_FORBIDDEN: u32 = 0o022;
/// What the mode of a file of the configuration may not have beside: read for others. It tells who may deploy what.
const SECRECY_FORBIDDEN: u32 = 0o004;
/// What the mode of a private key's file may not have: anything for group or others.
const PRIVATE_FORBIDDEN: u32 = 0o077;

/// Checks a file or folder of the configuration: owned by root or by the agent's user, writable by its
/// owner alone, and, a file, not readable by everybody.
pub(super) fn authority(path: &Path, metadata: &Metadata) -> Result<(), Refusal> {
    trusted_owner(path, metadata.uid(), rustix::process::geteuid().as_raw())?;
    let mode = metadata.mode() & 0o7777;
    if mode & AUTHORITY_FORBIDDEN != 0 {
        return refuse(
            format!("mode {mode:04o} lets others write it, and so give anybody the right to deploy"),
            format!("chmod go-w {}", path.display()),
        );
    }
    if metadata.is_file() && mode & SECRECY_FORBIDDEN != 0 {
        return refuse(
            format!("mode {mode:04o} lets everybody read who may deploy what"),
            format!("chmod o-r {}", path.display()),
        );
    }
    Ok(())
}

fn trusted_owner(path: &Path, owner: u32, agent: u32) -> Result<(), Refusal> {
    if owner == 0 || owner == agent {
        return Ok(());
    }
    refuse(
        format!("it belongs to user {owner}, who could give anybody the right to deploy"),
        format!("chown root {}", path.display()),
    )
}

/// Checks that a private key's file is there and readable by its owner alone.
pub(crate) fn private_file(path: &Path) -> Result<(), Refusal> {
    let metadata = regular_file(path)?;
    let mode = metadata.mode() & 0o7777;
    if mode & PRIVATE_FORBIDDEN == 0 {
        return Ok(());
    }
    let what = format!("mode {mode:04o} lets others read this private key");
    refuse(what, format!("chmod 600 {}", path.display()))
}

/// Checks that a file is there.
pub(crate) fn readable_file(path: &Path) -> Result<(), Refusal> {
    regular_file(path).map(|_| ())
}

fn regular_file(path: &Path) -> Result<Metadata, Refusal> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(metadata),
        Ok(_) => refuse("this is not a file", "name a PEM file"),
        Err(error) => refuse(
            format!("the file cannot be used: {}", cause(&error)),
            "check the path, and that the agent's user may read it",
        ),
    }
}

/// What an I/O error means to a person.
pub(super) fn cause(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound {
        "it does not exist".to_owned()
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "this user may not read it".to_owned()
    } else {
        error.to_string()
    }
}

fn refuse<T>(what: impl Into<String>, hint: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal {
        what: what.into(),
        hint: hint.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_root_and_of_the_agent_are_trusted_and_those_of_others_are_not() {
        let path = Path::new("agent.toml");
        for (owner, agent, trusted) in [
            (0, 0, true),
            (0, 990, true),
            (990, 990, true),
            (1000, 990, false),
            (1000, 0, false),
        ] {
            assert_eq!(
                trusted_owner(path, owner, agent).is_ok(),
                trusted,
                "{owner} {agent}"
            );
        }
    }
}
