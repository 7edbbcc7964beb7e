//! Is this the agent we mean? By its pin where there is one, else by the system's roots.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, SignatureScheme};

use crate::pin::Pin;

/// The server's key is not one of the pinned ones.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the server presented {presented}")]
pub(crate) struct WrongPin {
    /// The pin of the key that the server presented.
    pub(crate) presented: Pin,
}

/// The provider of all cryptography: ring.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// TLS 1.2 and 1.3 to a server that holds the private key of one of the pins.
///
/// # Errors
/// When ring lacks a protocol version, which it does not.
pub(crate) fn pinned(pins: &[Pin]) -> Result<ClientConfig, rustls::Error> {
    let provider = provider();
    let verifier = PinVerifier {
        pins: pins.to_vec(),
        provider: Arc::clone(&provider),
    };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// Compares the certificate's public key with the pins, and checks that the server holds the private one. Names, dates
/// and issuers do not matter then: the key is the identity, and the request's signature binds the host's name.
#[derive(Debug)]
struct PinVerifier {
    pins: Vec<Pin>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let spki = ParsedCertificate::try_from(end_entity)?.subject_public_key_info();
        let presented = Pin::of_public_key(&spki);
        if self.pins.contains(&presented) {
            Ok(ServerCertVerified::assertion())
        } else {
            let wrong = OtherError(Arc::new(WrongPin { presented }));
            Err(CertificateError::Other(wrong).into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Finds the TLS error inside what a request failed with.
pub(crate) fn tls_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An `io::Error` gives the source of what it wraps as its own source, and hides what it wraps.
        next = match error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref()) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// The wrong pin inside a TLS error, when that is what it is.
pub(crate) fn wrong_pin(error: &rustls::Error) -> Option<&WrongPin> {
    if let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other))) = error {
        other.downcast_ref()
    } else {
        None
    }
}
