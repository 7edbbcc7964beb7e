//! The certificate is made once, kept, checked, and pinned as curl and OpenSSL would.

use std::process::Command;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

use super::*;
use crate::config::TlsFiles;

fn server(names: &[&str], tls: Option<TlsFiles>) -> Server {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Server {
        listen: ([127, 0, 0, 1], 0).into(),
        names,
        tls,
    }
}

fn now() -> Timestamp {
    "2026-11-05T10:00:00Z".parse().unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[expect(clippy::disallowed_methods, reason = "the independent peer of this test")]
fn openssl(arguments: &str) -> String {
    let output = Command::new("sh").args(["-c", arguments]).output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{arguments}: {stdout}{stderr}");
    stdout.trim().to_owned()
}

#[test]
fn a_certificate_is_made_once_and_kept() {
    let state = tempfile::tempdir().unwrap();
    let state = state.path().join("not/there/yet");
    let server = server(&["web-1.example.com"], None);
    assert!(load_existing(&server, &state).unwrap().is_none());
    let first = load(&server, &state, now()).unwrap();
    let again = load(&server, &state, now()).unwrap();
    assert_eq!(first.pin, again.pin);
    assert_eq!(load_existing(&server, &state).unwrap().unwrap().pin, first.pin);
    assert_eq!(
        (mode(&state.join("tls/key.pem")), mode(&state.join("tls"))),
        (0o600, 0o700)
    );
    let left: Vec<_> = std::fs::read_dir(&state)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["tls"], "nothing is left beside it");
}

#[test]
fn the_pin_is_what_openssl_computes() {
    let state = tempfile::tempdir().unwrap();
    let pin = load(&server(&["a"], None), state.path(), now()).unwrap().pin;
    let file = state.path().join("tls/certificate.pem");
    let openssl = openssl(&format!(
        "openssl x509 -in {} -noout -pubkey | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64",
        file.display()
    ));
    assert_eq!(pin, format!("sha256//{openssl}"));
}

#[test]
fn the_certificate_has_the_names_without_ports_for_ten_years() {
    let state = tempfile::tempdir().unwrap();
    let server = server(
        &[
            "web-1.example.com:8443",
            "web-1.example.com",
            "10.0.0.5",
            "[::1]:8443",
        ],
        None,
    );
    load(&server, state.path(), now()).unwrap();
    let file = state.path().join("tls/certificate.pem");
    let text = openssl(&format!("openssl x509 -in {} -noout -text", file.display()));
    for expected in [
        "DNS:web-1.example.com, IP Address:10.0.0.5, IP Address:0:0:0:0:0:0:0:1",
        "Not Before: Nov  4 00:00:00 2026 GMT",
        "Not After : Nov  5 00:00:00 2036 GMT",
        "ASN1 OID: prime256v1",
        "TLS Web Server Authentication",
    ] {
        let found = expected.split(", ").all(|part| text.contains(part));
        assert!(found, "{expected}\n{text}");
    }
}

#[test]
fn two_that_start_at_once_agree_on_one_certificate() {
    let state = tempfile::tempdir().unwrap();
    let server = server(&["a"], None);
    let pins: Vec<String> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| load(&server, state.path(), now()).unwrap().pin))
            .collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert!(pins.iter().all(|pin| Some(pin) == pins.first()), "{pins:?}");
}

#[test]
fn what_became_of_its_files_is_said_and_nothing_is_made_anew() {
    type Damage = fn(&Path);
    let cases: [(Damage, &str, &str); 6] = [
        (
            |folder| std::fs::remove_file(folder.join("key.pem")).unwrap(),
            "key.pem is missing",
            "not made anew",
        ),
        (
            |folder| std::fs::remove_file(folder.join("certificate.pem")).unwrap(),
            "certificate.pem is missing",
            "not made anew",
        ),
        (
            |folder| drop(File::create(folder.join("key.pem")).unwrap()),
            "find a private key",
            "not made anew",
        ),
        (
            |folder| drop(File::create(folder.join("certificate.pem")).unwrap()),
            "find a certificate",
            "not made anew",
        ),
        (
            |folder| {
                std::fs::set_permissions(folder.join("key.pem"), PermissionsExt::from_mode(0o640)).unwrap()
            },
            "mode 0640 lets others read",
            "chmod 600",
        ),
        (
            |folder| {
                let other = KeyPair::generate().unwrap().serialize_pem();
                File::create(folder.join("key.pem"))
                    .unwrap()
                    .write_all(other.as_bytes())
                    .unwrap();
            },
            "serve with",
            "not made anew",
        ),
    ];
    for (damage, expected, hint) in cases {
        let state = tempfile::tempdir().unwrap();
        let server = server(&["a"], None);
        load(&server, state.path(), now()).unwrap();
        damage(&state.path().join("tls"));
        let error = load(&server, state.path(), now()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error} {expected}");
        assert!(
            error.hint().is_some_and(|shown| shown.contains(hint)),
            "{error} {:?}",
            error.hint()
        );
    }
}

#[test]
fn the_operators_certificate_is_used_with_keys_of_every_usual_form() {
    for make in [
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=a -keyout key.pem -out cert.pem",
        "openssl genrsa -traditional -out key.pem 2048 && openssl req -x509 -key key.pem -subj /CN=a -out cert.pem",
        "openssl ecparam -name prime256v1 -genkey -noout -out key.pem && openssl req -x509 -key key.pem -subj /CN=a -out cert.pem",
        "openssl genpkey -algorithm ed25519 -out key.pem && openssl req -x509 -key key.pem -subj /CN=a -out cert.pem",
    ] {
        let folder = tempfile::tempdir().unwrap();
        openssl(&format!(
            "cd {} && {make} && chmod 600 key.pem",
            folder.path().display()
        ));
        let tls = TlsFiles {
            certificate: folder.path().join("cert.pem"),
            key: folder.path().join("key.pem"),
        };
        let state = folder.path().join("state");
        let identity = load(&server(&["a"], Some(tls)), &state, now()).unwrap();
        assert!(identity.pin.starts_with("sha256//"), "{make}");
        assert!(!state.exists(), "no self-signed certificate is made beside it");
    }
}

#[test]
fn a_client_speaks_tls_1_2_and_1_3_with_it_and_sees_the_name() {
    let state = tempfile::tempdir().unwrap();
    let identity = load(&server(&["web-1.example.com"], None), state.path(), now()).unwrap();
    let pem = read(&state.path().join("tls/certificate.pem")).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    for version in [&TLS12, &TLS13] {
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let name = ServerName::try_from("web-1.example.com").unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut server = ServerConnection::new(Arc::clone(&identity.config)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets().unwrap();
        }
        assert_eq!(client.protocol_version(), Some(version.version));
        assert_eq!(client.alpn_protocol(), Some(&b"http/1.1"[..]));
    }
}
