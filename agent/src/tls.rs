//! Who this host is: its TLS key and certificate, and the pin that callers know it by.
//!
//! The operator's certificate is taken where one is configured. Otherwise a self-signed one is made, once: callers pin
//! its key, so it is never made anew by itself, whatever has become of its files.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{Timestamp, ToSpan as _};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::version::{TLS12, TLS13};

use crate::config::{Server, access};

/// The folder of the self-signed certificate, in the state folder.
const FOLDER: &str = "tls";
const CERTIFICATE_FILE: &str = "certificate.pem";
const KEY_FILE: &str = "key.pem";
/// How long a self-signed certificate is valid: callers pin its key, so its end protects nobody, and a short one would
/// stop deployments one day.
const VALID_YEARS: i32 = 10;
/// The largest PEM file that is read: a chain of a few certificates has about ten KiB.
const PEM_MAX_BYTES: u64 = 1 << 20;

/// Why there is no certificate to serve with.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The private key's file is missing, or others can read it.
    #[error("use the TLS key {}: {what}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// The command to type.
        hint: String,
    },
    /// A file holds no certificate, or something broken.
    #[error("find a certificate in {}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// A file holds no private key, or something broken.
    #[error("find a private key without passphrase in {}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// The certificate and the key cannot be used, or do not belong together.
    #[error("serve with {} and {}", certificate.display(), key.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// One of the two files of the self-signed certificate is gone.
    #[error("use the self-signed certificate: {} is missing", missing.display())]
    Half {
        /// The file that is not there.
        missing: PathBuf,
    },
    /// The self-signed certificate cannot be made.
    #[error("make a self-signed certificate")]
    Make {
        /// Why.
        source: rcgen::Error,
    },
    /// The self-signed certificate cannot be stored.
    #[error("store the self-signed certificate in {}", folder.display())]
    Store {
        /// Where.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl TlsError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let anew = |file: &Path| {
            let folder = file.parent().unwrap_or(file).display();
            format!(
                "callers have pinned this key, so it is not made anew by itself: restore the file, or remove {folder} \
                 and give the new `deploy-agent pin` to every caller"
            )
        };
        let is_own = |file: &Path| file.parent().is_some_and(|folder| folder.ends_with(FOLDER));
        match self {
            Self::KeyFile { hint, .. } => Some(hint.clone()),
            Self::Half { missing } => Some(anew(missing)),
            Self::Certificate { path, .. } | Self::Key { path, .. } | Self::Unusable { key: path, .. }
                if is_own(path) =>
            {
                Some(anew(path))
            }
            Self::Certificate { .. } => Some("name a PEM file with the chain, leaf first".to_owned()),
            Self::Key { .. } => {
                Some("name a PEM file; a passphrase is removed with `openssl pkey`".to_owned())
            }
            Self::Unusable { .. } => Some("name the key that the certificate was made for".to_owned()),
            Self::Read { .. } | Self::Make { .. } | Self::Store { .. } => None,
        }
    }
}

/// What a host serves with.
#[derive(Debug, Clone)]
pub struct Identity {
    /// TLS 1.2 and 1.3 on ring, HTTP/1.1.
    pub config: Arc<ServerConfig>,
    /// The key as callers pin it, in the form of curl's `--pinnedpubkey`: `sha256//` and base64.
    pub pin: String,
}

/// Loads the operator's certificate, or the self-signed one, which is made when there is none.
///
/// # Errors
/// When a certificate is there and cannot be used, and when one cannot be made.
pub fn load(server: &Server, state_dir: &Path, now: Timestamp) -> Result<Identity, TlsError> {
    if let Some(identity) = load_existing(server, state_dir)? {
        return Ok(identity);
    }
    make(server, state_dir, now)?;
    load_existing(server, state_dir)?.ok_or_else(|| TlsError::Half {
        missing: state_dir.join(FOLDER).join(KEY_FILE),
    })
}

/// Loads the operator's certificate, or the self-signed one; `None` when it has not been made yet.
///
/// # Errors
/// When a certificate is there and cannot be used.
pub fn load_existing(server: &Server, state_dir: &Path) -> Result<Option<Identity>, TlsError> {
    if let Some(files) = &server.tls {
        return identity(&files.certificate, &files.key).map(Some);
    }
    let folder = state_dir.join(FOLDER);
    let (certificate, key) = (folder.join(CERTIFICATE_FILE), folder.join(KEY_FILE));
    match (is_there(&certificate)?, is_there(&key)?) {
        (false, false) => Ok(None),
        (true, true) => identity(&certificate, &key).map(Some),
        (true, false) => Err(TlsError::Half { missing: key }),
        (false, true) => Err(TlsError::Half { missing: certificate }),
    }
}

fn is_there(path: &Path) -> Result<bool, TlsError> {
    path.try_exists().map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn identity(certificate_file: &Path, key_file: &Path) -> Result<Identity, TlsError> {
    access::private_file(key_file).map_err(|refusal| TlsError::KeyFile {
        path: key_file.to_owned(),
        what: refusal.what,
        hint: refusal.hint,
    })?;
    let broken = |source| TlsError::Certificate {
        path: certificate_file.to_owned(),
        source,
    };
    let pem = read(certificate_file)?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(broken)?;
    let leaf = chain.first().ok_or_else(|| broken(pem::Error::NoItemsFound))?;
    let unusable = |source| TlsError::Unusable {
        certificate: certificate_file.to_owned(),
        key: key_file.to_owned(),
        source,
    };
    let pin = pin_of(leaf).map_err(unusable)?;
    let key = PrivateKeyDer::from_pem_slice(&read(key_file)?).map_err(|source| TlsError::Key {
        path: key_file.to_owned(),
        source,
    })?;
    let config = server_config(chain, key).map_err(unusable)?;
    Ok(Identity {
        config: Arc::new(config),
        pin,
    })
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The SHA-256 of the certificate's SubjectPublicKeyInfo, which stays the same when the certificate is renewed.
fn pin_of(certificate: &CertificateDer<'_>) -> Result<String, rustls::Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let digest = ring::digest::digest(&ring::digest::SHA256, &parsed.subject_public_key_info());
    Ok(format!("sha256//{}", STANDARD.encode(digest)))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(PEM_MAX_BYTES).read_to_end(&mut bytes))
        .map_err(|source| TlsError::Read {
            path: path.to_owned(),
            source,
        })?;
    Ok(bytes)
}

fn make(server: &Server, state_dir: &Path, now: Timestamp) -> Result<(), TlsError> {
    let (certificate, key) = self_signed(&server.names, now).map_err(|source| TlsError::Make { source })?;
    store(state_dir, &certificate, &key).map_err(|source| TlsError::Store {
        folder: state_dir.join(FOLDER),
        source,
    })
}

/// A certificate and its ECDSA P-256 key, in PEM.
fn self_signed(names: &[String], now: Timestamp) -> Result<(String, String), rcgen::Error> {
    let mut hosts: Vec<String> = names.iter().map(|name| host_of(name).to_owned()).collect();
    hosts.sort();
    hosts.dedup();
    let mut params = CertificateParams::new(hosts)?;
    // A caller's clock may be behind ours.
    let today = now.to_zoned(jiff::tz::TimeZone::UTC).date();
    let begin = today.saturating_sub(1.day());
    let end = today.saturating_add(VALID_YEARS.years());
    params.not_before = rcgen::date_time_ymd(
        begin.year().into(),
        begin.month().unsigned_abs(),
        begin.day().unsigned_abs(),
    );
    params.not_after = rcgen::date_time_ymd(
        end.year().into(),
        end.month().unsigned_abs(),
        end.day().unsigned_abs(),
    );
    // The common name is limited to 64 bytes and read by nobody; the names stand in the extension.
    params.distinguished_name.push(DnType::CommonName, "deploy-agent");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// A name of the configuration without its port, and an IPv6 address without its brackets.
fn host_of(name: &str) -> &str {
    match name.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => name.split_once(':').map_or(name, |(host, _)| host),
    }
}

/// Stores both files or none: they are written into a folder beside, which is then renamed.
fn store(state_dir: &Path, certificate: &str, key: &str) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)?;
    let beside = tempfile::Builder::new()
        .prefix(".tls-")
        .permissions(PermissionsExt::from_mode(0o700))
        .tempdir_in(state_dir)?;
    for (name, text, mode) in [(CERTIFICATE_FILE, certificate, 0o644), (KEY_FILE, key, 0o600)] {
        let path = beside.path().join(name);
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
    }
    File::open(beside.path())?.sync_all()?;
    match std::fs::rename(beside.path(), state_dir.join(FOLDER)) {
        Ok(()) => {}
        // Another process was quicker (`deploy-agent pin` beside the first start): its certificate is the one.
        Err(_) if state_dir.join(FOLDER).join(KEY_FILE).exists() => return Ok(()),
        Err(error) => return Err(error),
    }
    File::open(state_dir)?.sync_all()
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
