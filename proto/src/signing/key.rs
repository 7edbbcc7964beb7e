//! Ed25519 keys and their texts: what `keygen` writes, what CI keeps as a secret, what a host's configuration names.
//!
//! An error never repeats any of the text it is about: a mistaken text is often still a secret.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SecureRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

/// What the one-line form of a private key begins with.
const LINE_PREFIX: &str = "deployctl-key:";
/// What a public key's text begins with.
const PUBLIC_PREFIX: &str = "ed25519:";
/// The longest private key text that is read, in bytes. An RSA key, which gets an answer of its own, has about 3 KiB.
const KEY_TEXT_MAX_BYTES: usize = 16 * 1024;
/// PKCS#8 v1 up to the seed: SEQUENCE of 46 bytes, version 0, then [`ALGORITHM_AND_SEED`] (RFC 8410 section 7).
const PKCS8_V1: [u8; 5] = [0x30, 0x2e, 0x02, 0x01, 0x00];
/// AlgorithmIdentifier 1.3.101.112, then an OCTET STRING of an OCTET STRING of 32 bytes.
const ALGORITHM_AND_SEED: [u8; 11] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// The algorithm identifiers of other keys, as they stand in PKCS#8: RSA, EC, X25519, Ed448.
const OID_RSA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const OIDS_OTHER: [&[u8]; 3] = [
    &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01],
    &[0x06, 0x03, 0x2b, 0x65, 0x6e],
    &[0x06, 0x03, 0x2b, 0x65, 0x71],
];

/// The system's source of randomness failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gave no random bytes")]
pub struct NoRandomness;

/// Why a text is not a private key that can sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Nothing but white space, as from a CI secret that is not set.
    #[error("the private key is empty: is the CI secret set for this job?")]
    Empty,
    /// An OpenSSH private key.
    #[error(
        "this is an OpenSSH private key, and OpenSSH cannot convert Ed25519 keys: make a key with `deployctl keygen`"
    )]
    OpenSsh,
    /// An RSA key.
    #[error("this is an RSA key, only Ed25519 can sign here: make a key with `deployctl keygen`")]
    Rsa,
    /// A key for another algorithm.
    #[error("this key is not an Ed25519 key: make one with `deployctl keygen`")]
    OtherAlgorithm,
    /// A key behind a passphrase.
    #[error("this private key has a passphrase: remove it with `openssl pkey -in KEY -out PLAIN`")]
    Encrypted,
    /// A public key or a certificate.
    #[error("this is a public key or a certificate, the private key is needed")]
    Public,
    /// The text ends too early.
    #[error("the private key is cut off: its END line is missing")]
    Truncated,
    /// It looks like a key and is none.
    #[error("the private key is damaged: copy it again, or make one with `deployctl keygen`")]
    Damaged,
    /// It does not look like a key.
    #[error(
        "this is not a private key: expected a PEM file (-----BEGIN PRIVATE KEY-----) or one line that begins with deployctl-key:"
    )]
    NotAKey,
}

/// Why a text is not a caller's public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPublicKey {
    /// A private key in a public key's place.
    #[error(
        "this is a PRIVATE key: keep it with the caller, and write here what `deployctl keygen` printed as public"
    )]
    Private,
    /// Other than `ed25519:` and 32 bytes in base64.
    #[error("a public key is ed25519: and 44 characters of base64, as `deployctl keygen` prints it")]
    Shape,
    /// A point for which anybody can make signatures, such as all zeros.
    #[error("this public key protects nothing: anybody can sign for it")]
    Weak,
}

/// A caller's private key.
pub struct PrivateKey {
    seed: [u8; 32],
    pair: Ed25519KeyPair,
}

impl PrivateKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate(rng: &dyn SecureRandom) -> Result<Self, NoRandomness> {
        let mut seed = [0; 32];
        rng.fill(&mut seed).map_err(|_| NoRandomness)?;
        Self::from_seed(seed).ok_or(NoRandomness)
    }

    /// Reads a key: PKCS#8 in PEM, version 1 (OpenSSL's) or 2, or the line of [`Self::to_line`]. White space around it
    /// and line ends of any kind do not matter.
    ///
    /// # Errors
    /// What the text is instead, without any of it.
    pub fn from_text(text: &str) -> Result<Self, BadKey> {
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            return Err(BadKey::Empty);
        }
        if text.len() > KEY_TEXT_MAX_BYTES {
            return Err(BadKey::NotAKey);
        }
        if let Some(line) = text.strip_prefix(LINE_PREFIX) {
            return Self::from_der(&STANDARD.decode(line.trim()).map_err(|_| BadKey::Damaged)?);
        }
        if text.starts_with(PUBLIC_PREFIX) || text.starts_with("ssh-") {
            return Err(BadKey::Public);
        }
        Self::from_pem(text)
    }

    /// The key as PKCS#8 v1 in PEM, which OpenSSL reads. It is a secret.
    pub fn to_pem(&self) -> String {
        format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            STANDARD.encode(self.pkcs8())
        )
    }

    /// The key on one line, for CI secrets, which often lose line breaks. It is a secret.
    pub fn to_line(&self) -> String {
        format!("{LINE_PREFIX}{}", STANDARD.encode(self.pkcs8()))
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(bytes)
    }

    /// Signs a message: 64 bytes.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }

    pub(super) fn from_seed(seed: [u8; 32]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).ok()?;
        Some(Self { seed, pair })
    }

    fn from_pem(text: &str) -> Result<Self, BadKey> {
        let (_, rest) = text.split_once("-----BEGIN ").ok_or(BadKey::NotAKey)?;
        let (label, rest) = rest.split_once("-----").ok_or(BadKey::Truncated)?;
        match label {
            "PRIVATE KEY" => {}
            "OPENSSH PRIVATE KEY" => return Err(BadKey::OpenSsh),
            "RSA PRIVATE KEY" => return Err(BadKey::Rsa),
            "EC PRIVATE KEY" | "DSA PRIVATE KEY" => return Err(BadKey::OtherAlgorithm),
            "ENCRYPTED PRIVATE KEY" => return Err(BadKey::Encrypted),
            "PUBLIC KEY" | "RSA PUBLIC KEY" | "CERTIFICATE" => return Err(BadKey::Public),
            _ => return Err(BadKey::NotAKey),
        }
        let (body, _) = rest
            .split_once("-----END PRIVATE KEY-----")
            .ok_or(BadKey::Truncated)?;
        let body: String = body.split_ascii_whitespace().collect();
        Self::from_der(&STANDARD.decode(body).map_err(|_| BadKey::Damaged)?)
    }

    fn from_der(der: &[u8]) -> Result<Self, BadKey> {
        let names = |oid: &[u8]| der.windows(oid.len()).take(16).any(|window| window == oid);
        if names(OID_RSA) {
            return Err(BadKey::Rsa);
        }
        if OIDS_OTHER.iter().any(|oid| names(oid)) {
            return Err(BadKey::OtherAlgorithm);
        }
        // ring checks the whole structure, and in version 2 that the public half belongs to the seed.
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| BadKey::Damaged)?;
        seed_of(der).and_then(Self::from_seed).ok_or(BadKey::Damaged)
    }

    fn pkcs8(&self) -> Vec<u8> {
        [&PKCS8_V1[..], &ALGORITHM_AND_SEED, &self.seed].concat()
    }
}

/// The seed in a PKCS#8 document that ring has accepted: after the length in one byte, and version 0 or 1.
fn seed_of(der: &[u8]) -> Option<[u8; 32]> {
    let body = der.get(2..)?;
    let body = body
        .strip_prefix(&[0x02, 0x01, 0x00])
        .or_else(|| body.strip_prefix(&[0x02, 0x01, 0x01]))?;
    body.strip_prefix(&ALGORITHM_AND_SEED)?.first_chunk().copied()
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey([hidden])")
    }
}

/// A caller's public key. Its text, `ed25519:` and base64, is also the `keyid` of its signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Its 32 bytes (RFC 8032 section 5.1.5).
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether the signature is this key's over the message.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }

    /// Whether it is a point of small order, in any of its encodings: such a key verifies signatures that nobody made.
    fn is_weak(&self) -> bool {
        let mut y = self.0;
        if let Some(last) = y.last_mut() {
            *last &= 0x7f;
        }
        WEAK_Y.contains(&y)
    }
}

impl FromStr for PublicKey {
    type Err = BadPublicKey;

    fn from_str(text: &str) -> Result<Self, BadPublicKey> {
        if text.starts_with(LINE_PREFIX) || text.contains("PRIVATE KEY") {
            return Err(BadPublicKey::Private);
        }
        let encoded = text.strip_prefix(PUBLIC_PREFIX).ok_or(BadPublicKey::Shape)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| BadPublicKey::Shape)?;
        let key = Self(bytes.try_into().map_err(|_| BadPublicKey::Shape)?);
        if key.is_weak() {
            Err(BadPublicKey::Weak)
        } else {
            Ok(key)
        }
    }
}

impl TryFrom<String> for PublicKey {
    type Error = BadPublicKey;

    fn try_from(text: String) -> Result<Self, BadPublicKey> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_PREFIX}{}", STANDARD.encode(self.0))
    }
}

/// The y coordinates of the eight points of small order, little-endian, with those that have a second encoding (y + p).
const WEAK_Y: [[u8; 32]; 7] = [
    ends(0x00, 0x00, 0x00),
    ends(0x01, 0x00, 0x00),
    ends(0xec, 0xff, 0x7f),
    ends(0xed, 0xff, 0x7f),
    ends(0xee, 0xff, 0x7f),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5,
        0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a,
        0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
];

const fn ends(first: u8, middle: u8, last: u8) -> [u8; 32] {
    let mut bytes = [middle; 32];
    let [head, .., tail] = &mut bytes;
    *head = first;
    *tail = last;
    bytes
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;

    use super::*;

    /// RFC 9421 appendix B.1.4, as `openssl pkey` writes it: version 1.
    const V1: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF\n\
        -----END PRIVATE KEY-----\n";
    const LINE: &str = "deployctl-key:MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF";
    const PUBLIC: &str = "ed25519:JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=";

    fn pem(der: &[u8]) -> String {
        format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            STANDARD.encode(der)
        )
    }

    #[test]
    fn a_key_is_read_in_every_form_that_people_paste() {
        for text in [
            V1.to_owned(),
            V1.replace('\n', "\r\n"),
            V1.replace('\n', " "),
            V1.replace('\n', ""),
            format!("\u{feff}\n  {V1}  \n"),
            format!("Made on a Monday\n{V1}"),
            LINE.to_owned(),
            format!("{LINE}\n"),
        ] {
            let key = PrivateKey::from_text(&text).expect(&text);
            assert_eq!(key.public().to_string(), PUBLIC);
            assert_eq!((key.to_pem().as_str(), key.to_line().as_str()), (V1, LINE));
        }
    }

    #[test]
    fn version_2_is_read_and_its_public_half_checked() {
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let der = der.as_ref();
        let key = PrivateKey::from_text(&pem(der)).unwrap();
        let again = PrivateKey::from_text(&key.to_line()).unwrap();
        assert_eq!(key.public(), again.public());
        assert_eq!(
            key.public().as_bytes(),
            Ed25519KeyPair::from_pkcs8(der).unwrap().public_key().as_ref()
        );
        let mut wrong = der.to_vec();
        *wrong.last_mut().unwrap() ^= 1;
        assert_eq!(PrivateKey::from_text(&pem(&wrong)).unwrap_err(), BadKey::Damaged);
    }

    #[test]
    fn a_new_key_signs_what_its_public_half_verifies() {
        let rng = SystemRandom::new();
        let (one, two) = (
            PrivateKey::generate(&rng).unwrap(),
            PrivateKey::generate(&rng).unwrap(),
        );
        let public: PublicKey = one.public().to_string().parse().unwrap();
        assert!(public.verifies(b"x", &one.sign(b"x")));
        assert!(!public.verifies(b"y", &one.sign(b"x")));
        assert!(!public.verifies(b"x", &two.sign(b"x")));
    }

    #[test]
    fn what_is_not_a_usable_key_is_named_and_none_of_it_repeated() {
        // Made by `openssl genpkey -algorithm x25519` and `openssl ecparam -genkey`, and an RSA key's first lines.
        const X25519: &str = "MC4CAQAwBQYDK2VuBCIEILCuMF1SwvX8Ooy6pVSmuTncILR+Y/nvTURue4pEZdtA";
        const P256: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg4yI/afPSHqzHp5vTFEpTPqwTcYIu92lDXdHFYe/Vg7uhRANCAAS9e+v6zW4gk7+3cAsHNt0eYfD2s55bFxcjcTkos9rQkWF8tpQlWbE0jI2kDeNbWz+niVlpqqK2FFWVEHiFaqGP";
        const RSA: &str = "MIICdwIBADANBgkqhkiG9w0BAQEFAASCAmEwggJdAgEAAoGBAKzz4qL/lwnSznyZ";
        let labelled = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
        let body = |body: &str| format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
        for (text, reason) in [
            (String::new(), BadKey::Empty),
            (" \r\n".to_owned(), BadKey::Empty),
            (labelled("OPENSSH PRIVATE KEY"), BadKey::OpenSsh),
            (
                "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNza".to_owned(),
                BadKey::OpenSsh,
            ),
            (labelled("RSA PRIVATE KEY"), BadKey::Rsa),
            (body(RSA), BadKey::Rsa),
            (body(P256), BadKey::OtherAlgorithm),
            (body(X25519), BadKey::OtherAlgorithm),
            (labelled("EC PRIVATE KEY"), BadKey::OtherAlgorithm),
            (labelled("ENCRYPTED PRIVATE KEY"), BadKey::Encrypted),
            (labelled("PUBLIC KEY"), BadKey::Public),
            (labelled("CERTIFICATE"), BadKey::Public),
            (PUBLIC.to_owned(), BadKey::Public),
            ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA".to_owned(), BadKey::Public),
            (V1.replace("-----END PRIVATE KEY-----", ""), BadKey::Truncated),
            (V1.chars().take(40).collect(), BadKey::Truncated),
            (V1.chars().take(20).collect(), BadKey::Truncated),
            (V1.replace("fSnF", ""), BadKey::Damaged),
            (V1.replace("fSnF", "fSn!"), BadKey::Damaged),
            (body(""), BadKey::Damaged),
            (LINE.chars().take(60).collect(), BadKey::Damaged),
            ("deployctl-key:".to_owned(), BadKey::Damaged),
            ("hunter2-the-password".to_owned(), BadKey::NotAKey),
            (
                "MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF".to_owned(),
                BadKey::NotAKey,
            ),
            ("x".repeat(KEY_TEXT_MAX_BYTES + 1), BadKey::NotAKey),
        ] {
            let error = PrivateKey::from_text(&text).expect_err(&text);
            assert_eq!(error, reason, "{text}");
        }
        for end in 0..V1.trim().len() {
            let cut: String = V1.chars().take(end).collect();

            assert!(PrivateKey::from_text(&cut).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_private_key_is_not_shown_by_debug() {
        assert_eq!(
            format!("{:?}", PrivateKey::from_text(V1).unwrap()),
            "PrivateKey([hidden])"
        );
    }

    #[test]
    fn a_public_key_has_one_text() {
        let key: PublicKey = PUBLIC.parse().unwrap();
        assert_eq!(key.to_string(), PUBLIC);
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(json, format!("\"{PUBLIC}\""));
        assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), key);
        let encoded = PUBLIC.strip_prefix("ed25519:").unwrap();
        for (text, reason) in [
            (String::new(), BadPublicKey::Shape),
            (encoded.to_owned(), BadPublicKey::Shape),
            (format!("Ed25519:{encoded}"), BadPublicKey::Shape),
            (format!(" {PUBLIC}"), BadPublicKey::Shape),
            (format!("{PUBLIC}\n"), BadPublicKey::Shape),
            (PUBLIC.replace("bs=", "bs"), BadPublicKey::Shape),
            (PUBLIC.replace("bs=", "bt="), BadPublicKey::Shape),
            (PUBLIC.replace("bs=", "bs=="), BadPublicKey::Shape),
            (PUBLIC.replace(['/', '+'], "_"), BadPublicKey::Shape),
            (
                format!("ed25519:{}", STANDARD.encode([1; 31])),
                BadPublicKey::Shape,
            ),
            (
                format!("ed25519:{}", STANDARD.encode([1; 33])),
                BadPublicKey::Shape,
            ),
            (LINE.to_owned(), BadPublicKey::Private),
            (V1.to_owned(), BadPublicKey::Private),
        ] {
            assert_eq!(text.parse::<PublicKey>(), Err(reason), "{text}");
        }
    }

    #[test]
    fn a_public_key_that_anybody_can_sign_for_is_refused() {
        // With the neutral element as key, R = neutral and S = 0 is a signature of everything.
        let mut forged = [0; 64];
        forged[0] = 1;
        assert!(PublicKey(ends(1, 0, 0)).verifies(b"anything", &forged));
        for y in WEAK_Y {
            let mut negative = y;
            negative[31] |= 0x80;
            for bytes in [y, negative] {
                let text = PublicKey(bytes).to_string();
                assert_eq!(text.parse::<PublicKey>(), Err(BadPublicKey::Weak), "{text}");
            }
        }
    }
}
