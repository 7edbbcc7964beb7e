//! The signed request as a whole: published vectors, an independent peer, every way to be refused, random damage.

use proptest::prelude::*;
use ring::rand::SystemRandom;

use super::signature::sign_with_nonce;
use super::*;

/// RFC 9421 appendix B.1.4, `test-key-ed25519`: PKCS#8 v1, as OpenSSL writes it.
const TEST_KEY_PEM: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF\n\
    -----END PRIVATE KEY-----\n";
const TEST_PUBLIC: &str = "ed25519:JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=";
const NOW: i64 = 1_618_884_473;
const NONCE: &str = "AAECAwQFBgcICQoLDA0ODw";
const BODY: &[u8] = b"{\"hello\": \"world\"}";
const PUSH: RequestParts<'_> = RequestParts {
    method: "POST",
    authority: "Web-1.Example.com:8443",
    path: "/v1/projects/shop/deployments",
    query: None,
    content_type: "application/json",
    body: BODY,
};

/// A request as it arrives: every header line, and the parts.
#[derive(Clone)]
struct Arrived {
    headers: Vec<(&'static str, Vec<u8>)>,
    method: String,
    authority: String,
    path: String,
    query: Option<String>,
    content_type: String,
    body: Vec<u8>,
}

impl Arrived {
    fn new(parts: &RequestParts<'_>, signed: &SignedHeaders) -> Self {
        Self {
            headers: vec![
                ("content-type", parts.content_type.into()),
                ("content-digest", signed.content_digest.clone().into()),
                ("signature-input", signed.signature_input.clone().into()),
                ("signature", signed.signature.clone().into()),
            ],
            method: parts.method.to_owned(),
            authority: parts.authority.to_owned(),
            path: parts.path.to_owned(),
            query: parts.query.map(str::to_owned),
            content_type: parts.content_type.to_owned(),
            body: parts.body.to_vec(),
        }
    }

    fn push() -> Self {
        Self::new(&PUSH, &sign_with_nonce(&test_key(), &PUSH, NOW, NONCE).unwrap())
    }

    fn header(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.headers.iter_mut().find(|(own, _)| *own == name).unwrap().1
    }

    fn replace(mut self, name: &str, from: &str, to: &str) -> Self {
        let before = String::from_utf8(self.header(name).clone()).unwrap();
        assert!(before.contains(from), "{name}: {before} has no {from}");
        *self.header(name) = before.replace(from, to).into_bytes();
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(own, _)| *own != name);
        self
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn read(&self, now: i64) -> Result<Claim, Rejection> {
        let lines = |name: &str| {
            let name = name.to_owned();
            self.headers
                .iter()
                .filter(move |(own, _)| *own == name)
                .map(|(_, value)| value.as_slice())
        };
        Claim::read(lines, now)
    }

    fn check(&self, now: i64) -> Result<(), Rejection> {
        self.check_as(&test_key().public(), &["web-1.example.com"], now)
    }

    fn check_as(&self, key: &PublicKey, names: &[&str], now: i64) -> Result<(), Rejection> {
        let parts = RequestParts {
            method: &self.method,
            authority: &self.authority,
            path: &self.path,
            query: self.query.as_deref(),
            content_type: &self.content_type,
            body: &self.body,
        };
        let names = AuthorityNames::new(names.iter().copied()).unwrap();
        self.read(now)?.verify(key, &parts, &names)
    }
}

fn test_key() -> PrivateKey {
    PrivateKey::from_text(TEST_KEY_PEM).unwrap()
}

/// A push signed for real over whatever components and parameters: what a careless or hostile signer could send.
fn signed_otherwise(components: &[&str], params: &[(&str, Param<'_>)]) -> Arrived {
    let params = SignatureParams::new(components, params).unwrap();
    let digest = content_digest(BODY);
    let base = signature_base(&params, |name| {
        Some(match name {
            "@method" => PUSH.method,
            "@authority" => "web-1.example.com:8443",
            "@path" => PUSH.path,
            "@query" => "?",
            "content-type" => PUSH.content_type,
            "content-digest" => &digest,
            _ => "foreign",
        })
    })
    .unwrap();
    let signature = test_key().sign(base.as_bytes());
    let signature = sfv::BareItem::ByteSequence(signature);
    let signed = SignedHeaders {
        content_digest: digest.clone(),
        signature_input: format!("sig1={}", params.text()),
        signature: format!(
            "sig1={}",
            sfv::ItemSerializer::new().bare_item(&signature).finish()
        ),
    };
    Arrived::new(&PUSH, &signed)
}

/// The usual parameters, one of them replaced (or taken out, or added).
fn with_param<'a>(name: &'a str, value: Option<Param<'a>>) -> Vec<(&'a str, Param<'a>)> {
    let mut params = vec![
        ("created", Param::Integer(NOW)),
        ("expires", Param::Integer(NOW + 60)),
        ("nonce", Param::Text(NONCE)),
        ("keyid", Param::Text(TEST_PUBLIC)),
        ("alg", Param::Text("ed25519")),
        ("tag", Param::Text(TAG)),
    ];
    match (params.iter_mut().find(|(own, _)| *own == name), value) {
        (Some(param), Some(value)) => param.1 = value,
        (Some(_), None) => params.retain(|(own, _)| *own != name),
        (None, Some(value)) => params.push((name, value)),
        (None, None) => {}
    }
    params
}

/// RFC 9421 appendix B.2.6.
mod b_2_6 {
    use super::*;

    const SIGNATURE: &str =
        "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==";
    const BASE: &str = "\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\
        \"@method\": POST\n\
        \"@path\": /foo\n\
        \"@authority\": example.com\n\
        \"content-type\": application/json\n\
        \"content-length\": 18\n\
        \"@signature-params\": (\"date\" \"@method\" \"@path\" \"@authority\" \"content-type\" \"content-length\");created=1618884473;keyid=\"test-key-ed25519\"";

    fn params() -> SignatureParams {
        SignatureParams::new(
            &[
                "date",
                "@method",
                "@path",
                "@authority",
                "content-type",
                "content-length",
            ],
            &[
                ("created", Param::Integer(NOW)),
                ("keyid", Param::Text("test-key-ed25519")),
            ],
        )
        .unwrap()
    }

    #[test]
    fn the_primitive_makes_the_base_and_the_signature_byte_for_byte() {
        let base = signature_base(&params(), |name| match name {
            "date" => Some("Tue, 20 Apr 2021 02:07:55 GMT"),
            "@method" => Some("POST"),
            "@path" => Some("/foo"),
            "@authority" => Some("example.com"),
            "content-type" => Some("application/json"),
            "content-length" => Some("18"),
            _ => None,
        })
        .unwrap();
        assert_eq!(base, BASE);
        let signature = test_key().sign(base.as_bytes());
        assert_eq!(
            sfv::ItemSerializer::new()
                .bare_item(&sfv::BareItem::ByteSequence(signature.clone()))
                .finish(),
            format!(":{SIGNATURE}:")
        );
        let public: PublicKey = TEST_PUBLIC.parse().unwrap();
        assert!(public.verifies(base.as_bytes(), &signature));
        assert!(!public.verifies(b"", &signature));
    }

    #[test]
    fn the_policy_refuses_it() {
        let arrived = Arrived {
            headers: vec![
                ("content-type", b"application/json".to_vec()),
                ("content-digest", content_digest(BODY).into()),
                ("signature-input", format!("sig-b26={}", params().text()).into()),
                ("signature", format!("sig-b26=:{SIGNATURE}:").into()),
            ],
            path: "/foo".to_owned(),
            query: Some("param=Value&Pet=dog".to_owned()),
            ..Arrived::push()
        };
        assert_eq!(arrived.check(NOW), Err(Rejection::ComponentForeign));
    }
}

/// An independent implementation: `http-message-signatures` 3.0.0 of PyPI, with the RFC's test key as `MappingKeyResolver`.
mod peer {
    use super::*;

    /// (parts, query, `Signature-Input`, `Signature`), made by
    /// `HTTPMessageSigner(signature_algorithm=ED25519, ...).sign(message, key_id=TEST_PUBLIC, created=NOW, expires=NOW + 60 s,
    /// nonce=NONCE, tag="deployctl/v1", covered_component_ids=..., use_existing_digest=True)` for the URLs
    /// `https://Web-1.Example.com:8443/v1/projects/shop/deployments`, `https://web-1.example.com:443/v1/projects?limit=5&q=a%20b`
    /// (with the components in reverse) and `https://web-1.example.com`.
    const SIGNED_BY_PEER: [(RequestParts<'_>, &str, &str); 3] = [
        (
            PUSH,
            "pyhms=(\"@method\" \"@authority\" \"@path\" \"@query\" \"content-type\" \"content-digest\");created=1618884473;keyid=\"ed25519:JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=\";alg=\"ed25519\";expires=1618884533;nonce=\"AAECAwQFBgcICQoLDA0ODw\";tag=\"deployctl/v1\"",
            "pyhms=:CuUA55t1T85kPm6hOP/voT6GRKRFQ7v+hwWyZHdKZzZ2+k2lcu+W/sZ4Yai5cI5mIU6LFmWWC5pIB75afJk8Ag==:",
        ),
        (
            LIST,
            "pyhms=(\"content-digest\" \"content-type\" \"@query\" \"@path\" \"@authority\" \"@method\");created=1618884473;keyid=\"ed25519:JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=\";alg=\"ed25519\";expires=1618884533;nonce=\"AAECAwQFBgcICQoLDA0ODw\";tag=\"deployctl/v1\"",
            "pyhms=:PCyAIJ8bySyIpULjTE9ddgQe+YuHR3piT0JgGyyfz2bIS/3u8/GRJyT20281RBXmb/MVQ7oCsMFuObf//8hsDw==:",
        ),
        (
            ROOT,
            "pyhms=(\"@method\" \"@authority\" \"@path\" \"@query\" \"content-type\" \"content-digest\");created=1618884473;keyid=\"ed25519:JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=\";alg=\"ed25519\";expires=1618884533;nonce=\"AAECAwQFBgcICQoLDA0ODw\";tag=\"deployctl/v1\"",
            "pyhms=:VVl1kBKLXLdtHdWV74QFQvHbpr26NHPAqSlUfztXL055AXTQDsct4MaVD+lZtSM/rrCInu1pVlfSRujjemK3Bw==:",
        ),
    ];
    const LIST: RequestParts<'_> = RequestParts {
        method: "GET",
        authority: "web-1.example.com:443",
        path: "/v1/projects",
        query: Some("limit=5&q=a%20b"),
        content_type: "application/json",
        body: b"",
    };
    const ROOT: RequestParts<'_> = RequestParts {
        method: "POST",
        authority: "web-1.example.com",
        path: "",
        query: None,
        content_type: "application/json",
        body: b"x",
    };
    /// `Signature` as made here for the same three requests with `sign_with_nonce(.., NOW, NONCE)`. The peer's
    /// `HTTPMessageVerifier(...).verify(message, expect_tag="deployctl/v1", require_components=COVERED, body=body)`, its
    /// clock set to NOW, took each of them; and Ed25519 is deterministic, so these bytes are what it took.
    const TAKEN_BY_PEER: [&str; 3] = [
        "sig1=:RGhFlGZ08DECx+5hG1IF1CJ4PAkEZKTEtyp4MZZxPWw2JAG79IG1VDoFIezbxQqW2AyZUKmDqsN0rwvWi47wBA==:",
        "sig1=:uhEXQ4lBYjOKuX3r4TrtkSCQYRcvde8OassLy+1O8fQ8HKLGPiQp/PJe92PV8kvKE1elsIJUTboYnbyI+GoDAw==:",
        "sig1=:uCXNDt32yv0xR/KSMoQOi7y+HwnwJnebCT5oKbaOejwxBh1c9ooXhMZW4qX19D+XvarL22T4hkF8alkJrNyGAg==:",
    ];

    #[test]
    fn we_take_what_the_peer_signs() {
        for (parts, signature_input, signature) in SIGNED_BY_PEER {
            let signed = SignedHeaders {
                content_digest: content_digest(parts.body),
                signature_input: signature_input.to_owned(),
                signature: signature.to_owned(),
            };
            assert_eq!(Arrived::new(&parts, &signed).check(NOW), Ok(()), "{parts:?}");
        }
    }

    #[test]
    fn the_peer_takes_what_we_sign() {
        for ((parts, _, _), taken) in SIGNED_BY_PEER.iter().zip(TAKEN_BY_PEER) {
            let signed = sign_with_nonce(&test_key(), parts, NOW, NONCE).unwrap();
            assert_eq!(signed.signature, taken, "{} {parts:?}", signed.signature_input);
        }
    }
}

#[test]
fn a_signed_request_is_taken_and_says_who_once_and_until_when() {
    let arrived = Arrived::push();
    for now in [NOW - FUTURE_SKEW_SECONDS, NOW, NOW + LIFETIME_SECONDS] {
        assert_eq!(arrived.check(now), Ok(()));
    }
    let claim = arrived.read(NOW).unwrap();
    assert_eq!(claim.public_key().to_string(), TEST_PUBLIC);
    assert_eq!(claim.nonce(), NONCE);
    assert_eq!(claim.expires(), NOW + LIFETIME_SECONDS);
}

#[test]
fn two_signatures_of_one_request_have_two_nonces() {
    let rng = SystemRandom::new();
    let sign = || {
        let signed = sign_request(&test_key(), &PUSH, NOW, &rng).unwrap();
        Arrived::new(&PUSH, &signed)
    };
    let (one, two) = (sign(), sign());
    assert_eq!((one.check(NOW), two.check(NOW)), (Ok(()), Ok(())));
    assert_ne!(one.read(NOW).unwrap().nonce(), two.read(NOW).unwrap().nonce());
}

#[test]
fn a_request_that_was_changed_or_moved_is_refused() {
    use Rejection as R;
    let push = Arrived::push;
    let at = |authority: &str| Arrived {
        authority: authority.to_owned(),
        ..push()
    };
    let path = |path: &str| Arrived {
        path: path.to_owned(),
        ..push()
    };
    let query = |query: &str| Arrived {
        query: Some(query.to_owned()),
        ..push()
    };
    let method = |method: &str| Arrived {
        method: method.to_owned(),
        ..push()
    };
    for (what, arrived, reason) in [
        (
            "body swapped",
            Arrived {
                body: b"{}".to_vec(),
                ..push()
            },
            R::BodyMismatch,
        ),
        (
            "body emptied",
            Arrived {
                body: vec![],
                ..push()
            },
            R::BodyMismatch,
        ),
        (
            "body and digest swapped",
            Arrived {
                body: b"{}".to_vec(),
                ..push()
            }
            .replace("content-digest", &content_digest(BODY), &content_digest(b"{}")),
            R::BadSignature,
        ),
        ("query added", query("a=b"), R::BadSignature),
        ("fragment in the query", query("a#b"), R::Target),
        ("line break in the query", query("\n\"@path\": /"), R::Target),
        ("method changed", method("PUT"), R::BadSignature),
        ("method in lower case", method("post"), R::Target),
        ("no method", method(""), R::Target),
        (
            "path changed",
            path("/v1/projects/blog/deployments"),
            R::BadSignature,
        ),
        (
            "path with a slash more",
            path("/v1/projects/shop/deployments/"),
            R::BadSignature,
        ),
        (
            "path with another spelling",
            path("/v1/projects/%73hop/deployments"),
            R::BadSignature,
        ),
        (
            "path with the query in it",
            path("/v1/projects/shop/deployments?"),
            R::Target,
        ),
        ("path beyond ASCII", path("/\u{e4}"), R::Target),
        ("no path", path("*"), R::Target),
        ("another host", at("web-2.example.com:8443"), R::Authority),
        ("another port", at("web-1.example.com:9443"), R::BadSignature),
        ("no port", at("web-1.example.com"), R::BadSignature),
        ("a user in the host", at("a@web-1.example.com"), R::Authority),
        ("no host", at(""), R::Authority),
        (
            "another content type",
            Arrived {
                content_type: "text/plain".to_owned(),
                ..push()
            },
            R::ContentType,
        ),
        (
            "another content type, both times",
            Arrived {
                content_type: "application/jsox".to_owned(),
                ..push()
            }
            .replace("content-type", "json", "jsox"),
            R::BadSignature,
        ),
    ] {
        assert_eq!(arrived.check(NOW), Err(reason), "{what}");
    }
    // For host A, sent to B with A's Host: B goes by its own names.
    let public = test_key().public();
    assert_eq!(
        push().check_as(&public, &["web-2.example.com"], NOW),
        Err(R::Authority)
    );
    assert_eq!(push().check_as(&public, &[], NOW), Err(R::Authority));
    assert_eq!(push().check_as(&public, &["web-1.example.com:8443"], NOW), Ok(()));
    // Another key than the one that the request names.
    let other = PrivateKey::generate(&SystemRandom::new()).unwrap();
    assert_eq!(
        push().check_as(&other.public(), &["web-1.example.com"], NOW),
        Err(R::OtherKey)
    );
    // A request that names another's key.
    let impostor = push().replace("signature-input", TEST_PUBLIC, &other.public().to_string());
    assert_eq!(
        impostor.check_as(&other.public(), &["web-1.example.com"], NOW),
        Err(R::BadSignature)
    );
}

#[test]
fn headers_that_are_missing_doubled_long_or_unclear_are_refused() {
    use Rejection as R;
    let push = Arrived::push;
    let long = "x".repeat(2000);
    for (what, arrived, reason) in [
        ("no signature", push().without("signature"), R::NotSigned),
        ("no input", push().without("signature-input"), R::NotSigned),
        ("no digest", push().without("content-digest"), R::DigestMissing),
        ("no content type", push().without("content-type"), R::ContentType),
        (
            "two signatures",
            push().with("signature", "sig2=:AAAA:"),
            R::Several,
        ),
        (
            "two inputs",
            push().with("signature-input", "sig2=()"),
            R::Several,
        ),
        (
            "two digests",
            push().with("content-digest", "sha-256=:AAAA:"),
            R::Several,
        ),
        (
            "two content types",
            push().with("content-type", "text/plain"),
            R::Several,
        ),
        (
            "two labels in the input",
            push().replace("signature-input", "sig1=", "sig0=(), sig1="),
            R::Several,
        ),
        (
            "two labels in the signature",
            push().replace("signature", "sig1=", "sig0=:AAAA:, sig1="),
            R::Several,
        ),
        (
            "the same label twice",
            push().replace("signature", "sig1=", "sig1=:AAAA:, sig1="),
            R::Malformed,
        ),
        (
            "another label",
            push().replace("signature", "sig1=", "sig2="),
            R::LabelMismatch,
        ),
        (
            "long signature",
            push().without("signature").with("signature", &long),
            R::HeaderTooLong,
        ),
        (
            "long input",
            push().without("signature-input").with("signature-input", &long),
            R::HeaderTooLong,
        ),
        (
            "long digest",
            push().without("content-digest").with("content-digest", &long),
            R::HeaderTooLong,
        ),
        (
            "empty input",
            push().without("signature-input").with("signature-input", ""),
            R::Malformed,
        ),
        (
            "a signature that is a list",
            push().without("signature").with("signature", "sig1=(:AAAA:)"),
            R::Malformed,
        ),
        (
            "a signature that is a text",
            push().without("signature").with("signature", "sig1=\"AAAA\""),
            R::Malformed,
        ),
        (
            "a signature with a parameter",
            push().replace("signature", "==:", "==:;a=1"),
            R::Malformed,
        ),
        (
            "a signature without padding",
            push().replace("signature", "==:", "=:"),
            R::Malformed,
        ),
        (
            "63 bytes",
            push()
                .without("signature")
                .with("signature", &format!("sig1=:{}:", "AAAA".repeat(21))),
            R::SignatureLength,
        ),
        (
            "65 bytes",
            push()
                .without("signature")
                .with("signature", &format!("sig1=:{}AAA=:", "AAAA".repeat(21))),
            R::SignatureLength,
        ),
        (
            "no bytes",
            push().without("signature").with("signature", "sig1=::"),
            R::SignatureLength,
        ),
        (
            "an input that is an item",
            push()
                .without("signature-input")
                .with("signature-input", "sig1=1"),
            R::Malformed,
        ),
        (
            "a component with a parameter",
            push().replace("signature-input", "\"@path\"", "\"@path\";req"),
            R::ComponentParameters,
        ),
        (
            "a component that is a token",
            push().replace("signature-input", "\"@path\"", "path"),
            R::Malformed,
        ),
        (
            "a parameter twice",
            push().replace("signature-input", ";tag=", ";tag=\"x\";tag="),
            R::Malformed,
        ),
        (
            "a doubled space",
            push().replace("signature-input", "\" \"@path", "\"  \"@path"),
            R::Malformed,
        ),
        (
            "created 2^63",
            push().replace(
                "signature-input",
                "created=1618884473",
                "created=9223372036854775808",
            ),
            R::Malformed,
        ),
        (
            "created with a zero",
            push().replace("signature-input", "created=1618884473", "created=01618884473"),
            R::Malformed,
        ),
        (
            "created a float",
            push().replace("signature-input", "created=1618884473", "created=1618884473.0"),
            R::Created,
        ),
        (
            "created a text",
            push().replace("signature-input", "created=1618884473", "created=\"1618884473\""),
            R::Created,
        ),
        (
            "created a date",
            push().replace("signature-input", "created=1618884473", "created=@1618884473"),
            R::Created,
        ),
        (
            "alg a token",
            push().replace("signature-input", "\"ed25519\"", "ed25519"),
            R::Algorithm,
        ),
        (
            "md5",
            push().replace("content-digest", "sha-256", "md5"),
            R::DigestAlgorithm,
        ),
        (
            "sha",
            push().replace("content-digest", "sha-256", "sha"),
            R::DigestAlgorithm,
        ),
        (
            "an unclear digest",
            push().replace("content-digest", "=:", ":"),
            R::DigestMalformed,
        ),
    ] {
        assert_eq!(arrived.check(NOW), Err(reason), "{what}");
    }
    let mut binary = push();
    *binary.header("content-type") = vec![0xff];
    assert_eq!(binary.check(NOW), Err(R::ContentType));
}

#[test]
fn a_true_signature_over_the_wrong_things_is_refused() {
    use Rejection as R;
    let usual = with_param("", None);
    assert_eq!(signed_otherwise(&COVERED, &usual).check(NOW), Ok(()));
    for missing in COVERED {
        let rest: Vec<&str> = COVERED.into_iter().filter(|name| *name != missing).collect();
        assert_eq!(
            signed_otherwise(&rest, &usual).check(NOW),
            Err(R::ComponentMissing),
            "{missing}"
        );
        let foreign: Vec<&str> = COVERED.into_iter().chain(["date"]).collect();
        assert_eq!(
            signed_otherwise(&foreign, &usual).check(NOW),
            Err(R::ComponentForeign)
        );
    }
    assert_eq!(signed_otherwise(&[], &usual).check(NOW), Err(R::ComponentMissing));
    let twice = Arrived::push().replace("signature-input", "(\"@method\"", "(\"@method\" \"@method\"");
    assert_eq!(twice.check(NOW), Err(R::ComponentRepeated));

    let (integer, text) = (Param::Integer, Param::Text);
    for (name, value, reason) in [
        ("created", None, R::Created),
        ("created", Some(text("1618884473")), R::Created),
        ("created", Some(integer(-1)), R::Lifetime),
        ("created", Some(integer(999_999_999_999_999)), R::Lifetime),
        ("created", Some(integer(-999_999_999_999_999)), R::Lifetime),
        ("expires", None, R::Expires),
        ("expires", Some(text("never")), R::Expires),
        ("expires", Some(integer(NOW)), R::Lifetime),
        ("expires", Some(integer(NOW - 1)), R::Lifetime),
        (
            "expires",
            Some(integer(NOW + MAX_LIFETIME_SECONDS + 1)),
            R::Lifetime,
        ),
        ("expires", Some(integer(NOW + 10 * 365 * 86_400)), R::Lifetime),
        ("alg", None, R::Algorithm),
        ("alg", Some(text("hmac-sha256")), R::Algorithm),
        ("alg", Some(text("rsa-pss-sha512")), R::Algorithm),
        ("alg", Some(text("Ed25519")), R::Algorithm),
        ("alg", Some(integer(1)), R::Algorithm),
        ("tag", None, R::Tag),
        ("tag", Some(text("deployctl/v2")), R::Tag),
        ("nonce", None, R::Nonce),
        ("nonce", Some(text("")), R::Nonce),
        ("nonce", Some(text("AAECAwQFBgcICQoLDA0OD")), R::Nonce),
        ("nonce", Some(text(&"a".repeat(65))), R::Nonce),
        ("nonce", Some(text("AAECAwQFBgcICQoLDA0OD'")), R::Nonce),
        ("nonce", Some(integer(1)), R::Nonce),
        ("keyid", None, R::KeyId),
        ("keyid", Some(text("test-key-ed25519")), R::KeyId),
        (
            "keyid",
            Some(text("ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")),
            R::KeyId,
        ),
        ("priority", Some(integer(1)), R::ParameterForeign),
    ] {
        let arrived = signed_otherwise(&COVERED, &with_param(name, value));
        assert_eq!(arrived.check(NOW), Err(reason), "{name} {value:?}");
    }
}

#[test]
fn a_signature_is_valid_only_in_its_time() {
    let long = signed_otherwise(
        &COVERED,
        &with_param("expires", Some(Param::Integer(NOW + MAX_LIFETIME_SECONDS))),
    );
    let short = Arrived::push();
    for (arrived, now, expected) in [
        (
            &short,
            NOW - FUTURE_SKEW_SECONDS - 1,
            Err(Rejection::FromTheFuture),
        ),
        (&short, NOW - FUTURE_SKEW_SECONDS, Ok(())),
        (&short, NOW + LIFETIME_SECONDS, Ok(())),
        (&short, NOW + LIFETIME_SECONDS + 1, Err(Rejection::Expired)),
        (&short, NOW + MAX_AGE_SECONDS + 1, Err(Rejection::TooOld)),
        (&long, NOW + MAX_AGE_SECONDS, Ok(())),
        (&long, NOW + MAX_AGE_SECONDS + 1, Err(Rejection::TooOld)),
        (&long, i64::MAX, Err(Rejection::TooOld)),
        (&long, i64::MIN, Err(Rejection::FromTheFuture)),
        (&long, 0, Err(Rejection::FromTheFuture)),
    ] {
        assert_eq!(arrived.check(now), expected, "{now}");
    }
}

#[test]
fn a_part_that_no_host_would_take_is_not_signed() {
    for (parts, part) in [
        (
            RequestParts {
                method: "post",
                ..PUSH
            },
            "method",
        ),
        (RequestParts { path: "v1", ..PUSH }, "path"),
        (RequestParts { path: "/a b", ..PUSH }, "path"),
        (
            RequestParts {
                query: Some("a\n"),
                ..PUSH
            },
            "query",
        ),
        (
            RequestParts {
                authority: "a b",
                ..PUSH
            },
            "authority",
        ),
        (
            RequestParts {
                content_type: "",
                ..PUSH
            },
            "content type",
        ),
        (
            RequestParts {
                content_type: "text/plain ",
                ..PUSH
            },
            "content type",
        ),
    ] {
        let error = sign_with_nonce(&test_key(), &parts, NOW, NONCE).unwrap_err();
        assert_eq!(error, SignError::Part { part });
    }
    let parts = RequestParts {
        content_type: "text/\u{e4}",
        ..PUSH
    };
    assert!(matches!(
        sign_with_nonce(&test_key(), &parts, NOW, NONCE),
        Err(SignError::Base(_))
    ));
}

fn flip(bytes: &mut [u8], bit: prop::sample::Index) {
    let bit = bit.index(bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
}

proptest! {
    #[test]
    fn every_signed_request_is_taken(
        seed: [u8; 32],
        method in "[A-Z]{1,8}",
        host in "[a-zA-Z0-9.-]{1,60}",
        port in proptest::option::of(1u16..),
        path in "(/[!-\"$->@-~]{0,80})?",
        query in proptest::option::of("[!-\"$-~]{0,80}"),
        content_type in "[a-z]{1,20}/[a-z]{1,20}(; charset=utf-8)?",
        body: Vec<u8>,
        now in 0i64..100_000_000_000,
    ) {
        let key = PrivateKey::from_seed(seed).unwrap();
        let authority = port.map_or(host.clone(), |port| format!("{host}:{port}"));
        let parts = RequestParts {
            method: &method,
            authority: &authority,
            path: &path,
            query: query.as_deref(),
            content_type: &content_type,
            body: &body,
        };
        let signed = sign_request(&key, &parts, now, &SystemRandom::new()).unwrap();
        let arrived = Arrived::new(&parts, &signed);
        prop_assert_eq!(arrived.check_as(&key.public(), &[&host], now), Ok(()));
        prop_assert_eq!(arrived.check_as(&key.public(), &["other.example.com"], now), Err(Rejection::Authority));
    }

    #[test]
    fn one_flipped_bit_anywhere_is_refused(
        body in prop::collection::vec(any::<u8>(), 1..200),
        header in 0usize..4,
        bit: prop::sample::Index,
    ) {
        let parts = RequestParts { body: &body, query: Some("limit=5"), ..PUSH };
        let signed = sign_with_nonce(&test_key(), &parts, NOW, NONCE).unwrap();
        let whole = Arrived::new(&parts, &signed);
        prop_assert_eq!(whole.check(NOW), Ok(()));

        let mut damaged = whole.clone();
        flip(&mut damaged.headers[header].1, bit);
        prop_assert!(damaged.check(NOW).is_err(), "{} {:?}", damaged.headers[header].0, damaged.headers[header].1);

        let mut damaged = whole.clone();
        flip(&mut damaged.body, bit);
        prop_assert_eq!(damaged.check(NOW), Err(Rejection::BodyMismatch));

        // The content type as header and as part, both with the same bit flipped.
        let mut damaged = whole.clone();
        flip(&mut damaged.headers[0].1, bit);
        if let Ok(content_type) = String::from_utf8(damaged.headers[0].1.clone()) {
            damaged.content_type = content_type;
            prop_assert!(damaged.check(NOW).is_err(), "{}", damaged.content_type);
        }

        for part in ["method", "authority", "path", "query"] {
            let mut damaged = whole.clone();
            let text = match part {
                "method" => &mut damaged.method,
                "authority" => &mut damaged.authority,
                "path" => &mut damaged.path,
                _ => damaged.query.as_mut().unwrap(),
            };
            let before = text.clone();
            let mut bytes = text.clone().into_bytes();
            flip(&mut bytes, bit);
            let Ok(after) = String::from_utf8(bytes) else { continue };
            *text = after.clone();
            // The case of a host name means nothing (RFC 9421 section 2.2.3).
            let same = part == "authority" && after.eq_ignore_ascii_case(&before);
            prop_assert_eq!(damaged.check(NOW).is_ok(), same, "{} {:?}", part, after);
        }
    }

    #[test]
    fn no_header_makes_it_panic(
        input: Vec<u8>, signature: Vec<u8>, digest: Vec<u8>, kind in "\\PC{0,40}", now: i64,
    ) {
        let mut arrived = Arrived::push();
        *arrived.header("signature-input") = input;
        *arrived.header("signature") = signature;
        *arrived.header("content-digest") = digest;
        *arrived.header("content-type") = kind.into_bytes();
        prop_assert!(arrived.check(now).is_err());
    }
}
