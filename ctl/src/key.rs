//! The caller's private key: where it is read from, and how a new one is written.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use deploy_proto::signing::{BadKey, NoRandomness, PrivateKey};

use crate::caller::Caller;

/// The largest key file that is read, in bytes; a PEM of Ed25519 is 119.
const KEY_FILE_MAX_BYTES: u64 = 64 * 1024;
/// The bits of a file's mode that let others than its owner at it.
const OTHERS: u32 = 0o077;

/// Why there is no key to sign with, or none could be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("there is no private key to sign with")]
    None { searched: Option<PathBuf> },
    #[error("failed to read the private key {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the private key {path} can be read by others (mode {mode:04o})")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{from} does not hold a private key")]
    Bad {
        from: String,
        #[source]
        source: BadKey,
    },
    #[error("failed to make a key")]
    Randomness(#[source] NoRandomness),
    #[error("{path} exists already: a key is never overwritten")]
    Exists { path: PathBuf },
    #[error("failed to write the private key {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("there is no folder to keep the key in")]
    NoPlace,
}

impl KeyError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::None { searched } => Some(match searched {
                Some(path) => format!(
                    "give --key-file PATH, set DEPLOYCTL_KEY, or make {} with: deployctl keygen",
                    path.display()
                ),
                None => {
                    "give --key-file PATH or set DEPLOYCTL_KEY; make a key with: deployctl keygen".to_owned()
                }
            }),
            Self::Exposed { path, .. } => Some(format!("chmod 600 {}", path.display())),
            Self::Exists { path } => Some(format!(
                "name another file: deployctl keygen --key-file {}.new",
                path.display()
            )),
            Self::NoPlace => Some("name a file: deployctl keygen --key-file PATH".to_owned()),
            Self::Read { .. } | Self::Bad { .. } | Self::Randomness(_) | Self::Write { .. } => None,
        }
    }
}

/// Reads the key: `--key-file`, else `DEPLOYCTL_KEY`, else the default file.
pub(crate) fn load(key_file: Option<&Path>, caller: &Caller) -> Result<PrivateKey, KeyError> {
    if let Some(path) = key_file {
        return read(path);
    }
    if let Some(text) = &caller.key_text {
        return PrivateKey::from_text(text).map_err(|source| KeyError::Bad {
            from: "DEPLOYCTL_KEY".to_owned(),
            source,
        });
    }
    match caller.default_key_file() {
        Some(path) if path.exists() => read(&path),
        searched => Err(KeyError::None { searched }),
    }
}

fn read(path: &Path) -> Result<PrivateKey, KeyError> {
    let failed = |source| KeyError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o7777;
    // A pipe or /dev/stdin, as in `--key-file <(pass show deploy)`, has no lasting mode worth a refusal.
    if metadata.is_file() && mode & OTHERS != 0 {
        return Err(KeyError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = String::new();
    file.take(KEY_FILE_MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(failed)?;
    PrivateKey::from_text(&text).map_err(|source| KeyError::Bad {
        from: path.display().to_string(),
        source,
    })
}

/// Writes a new key for its owner only (mode 0600). The file must not exist.
pub(crate) fn write_new(path: &Path, key: &PrivateKey) -> Result<(), KeyError> {
    let failed = |source: std::io::Error| {
        let path = path.to_owned();
        if source.kind() == std::io::ErrorKind::AlreadyExists {
            KeyError::Exists { path }
        } else {
            KeyError::Write { path, source }
        }
    };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed)?;
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let written = file
        .write_all(key.to_pem().as_bytes())
        .and_then(|()| file.sync_all());
    written.map_err(|source| KeyError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;

    use super::*;

    fn key() -> PrivateKey {
        PrivateKey::generate(&SystemRandom::new()).unwrap()
    }

    fn hint(error: &KeyError) -> String {
        error.hint().unwrap_or_default()
    }

    #[test]
    fn a_new_key_is_for_its_owner_only_is_read_back_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/key.pem");
        let key = key();
        write_new(&path, &key).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let caller = Caller::default();
        assert_eq!(
            load(Some(&path), &caller).unwrap().public().to_string(),
            key.public().to_string()
        );
        let error = write_new(&path, &self::key()).unwrap_err();
        assert!(matches!(error, KeyError::Exists { .. }), "{error}");
        assert_eq!(
            load(Some(&path), &caller).unwrap().public().to_string(),
            key.public().to_string()
        );
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_chmod_to_type() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        write_new(&path, &key()).unwrap();
        for mode in [0o644, 0o640, 0o604] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let Err(error) = load(Some(&path), &Caller::default()) else {
                panic!("mode {mode:o} was taken");
            };
            assert_eq!(hint(&error), format!("chmod 600 {}", path.display()));
        }
    }

    #[test]
    fn the_file_wins_over_the_variable_and_that_over_the_default_file() {
        let folder = tempfile::tempdir().unwrap();
        let [file, variable, default] = [key(), key(), key()];
        let path = folder.path().join("key.pem");
        write_new(&path, &file).unwrap();
        let mut caller = Caller {
            config_home: Some(folder.path().to_owned()),
            key_text: Some(variable.to_line()),
            ..Caller::default()
        };
        write_new(&caller.default_key_file().unwrap(), &default).unwrap();
        let public = |key: PrivateKey| key.public().to_string();
        let loaded = |path, caller: &Caller| public(load(path, caller).unwrap());
        let [file, variable, default] = [file, variable, default].map(public);
        assert_eq!(loaded(Some(path.as_path()), &caller), file);
        assert_eq!(loaded(None, &caller), variable);
        caller.key_text = None;
        assert_eq!(loaded(None, &caller), default);
        caller.key_text = Some(String::new());
        assert!(matches!(load(None, &caller), Err(KeyError::Bad { .. })));
        caller = Caller::default();
        assert!(matches!(load(None, &caller), Err(KeyError::None { .. })));
    }
}
