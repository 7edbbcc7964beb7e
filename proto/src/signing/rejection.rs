//! Why a request's signature is refused: for the audit log and a metric, never for the one who sent it.

/// One reason. The caller of the API hears the same for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Rejection {
    /// `Signature` or `Signature-Input` is missing.
    #[error("the request is not signed")]
    NotSigned,
    /// A header that may stand once stands twice, or a header has two signatures.
    #[error("the request has more than one signature, digest or content type")]
    Several,
    /// A header is longer than a signed request needs.
    #[error("a header is too long")]
    HeaderTooLong,
    /// `Signature` or `Signature-Input` is not in the one spelling of RFC 9651.
    #[error("the signature's headers are malformed")]
    Malformed,
    /// The two headers name different signatures.
    #[error("the signature and its input have different labels")]
    LabelMismatch,
    /// Something that must be signed is not.
    #[error("the signature does not cover every required component")]
    ComponentMissing,
    /// Something is covered that is none of the required components.
    #[error("the signature covers a component that is not expected")]
    ComponentForeign,
    /// A component is covered twice.
    #[error("the signature covers a component twice")]
    ComponentRepeated,
    /// A component has parameters, such as `;req` or `;bs`.
    #[error("a covered component has parameters")]
    ComponentParameters,
    /// A parameter is none of `created expires nonce keyid alg tag`.
    #[error("the signature has a parameter that is not expected")]
    ParameterForeign,
    /// `created` is missing or not an integer.
    #[error("the signature does not say when it was created")]
    Created,
    /// `expires` is missing or not an integer.
    #[error("the signature does not say when it expires")]
    Expires,
    /// `expires` is not after `created`, or too long after it.
    #[error("the signature's lifetime is not allowed")]
    Lifetime,
    /// `created` lies ahead of this host's clock.
    #[error("the signature is from the future: compare the clocks")]
    FromTheFuture,
    /// `created` is too long ago.
    #[error("the signature is too old: compare the clocks")]
    TooOld,
    /// `expires` has passed.
    #[error("the signature has expired: compare the clocks")]
    Expired,
    /// `alg` is missing or not `ed25519`.
    #[error("the signature's algorithm is not ed25519")]
    Algorithm,
    /// `tag` is missing or not ours.
    #[error("the signature's tag is not ours")]
    Tag,
    /// `nonce` is missing, short, long, or of unexpected characters.
    #[error("the signature's nonce is missing or malformed")]
    Nonce,
    /// `keyid` is missing or not a public key's text.
    #[error("the signature's key id is missing or malformed")]
    KeyId,
    /// The signature is not 64 bytes.
    #[error("the signature does not have 64 bytes")]
    SignatureLength,
    /// `Content-Type` is missing, not ASCII, or other than what the request was read with.
    #[error("the content type is missing or ambiguous")]
    ContentType,
    /// `Content-Digest` is missing.
    #[error("the content digest is missing")]
    DigestMissing,
    /// `Content-Digest` is not in the one spelling of RFC 9651.
    #[error("the content digest is malformed")]
    DigestMalformed,
    /// `Content-Digest` has no SHA-256.
    #[error("the content digest has no sha-256")]
    DigestAlgorithm,
    /// The key to verify with is not the key that the request names.
    #[error("the key is not the one that the signature names")]
    OtherKey,
    /// The method, path or query is not what a signature base can hold.
    #[error("the method, path or query is malformed")]
    Target,
    /// `Host` is none of this host's names.
    #[error("the request was made for another host")]
    Authority,
    /// The signature is not this key's over this request.
    #[error("the signature is wrong")]
    BadSignature,
    /// The body is not the one that was signed.
    #[error("the body is not the one that was signed")]
    BodyMismatch,
}

impl Rejection {
    /// Every reason, for counters that must exist before they count.
    pub const ALL: [Self; 30] = [
        Self::NotSigned,
        Self::Several,
        Self::HeaderTooLong,
        Self::Malformed,
        Self::LabelMismatch,
        Self::ComponentMissing,
        Self::ComponentForeign,
        Self::ComponentRepeated,
        Self::ComponentParameters,
        Self::ParameterForeign,
        Self::Created,
        Self::Expires,
        Self::Lifetime,
        Self::FromTheFuture,
        Self::TooOld,
        Self::Expired,
        Self::Algorithm,
        Self::Tag,
        Self::Nonce,
        Self::KeyId,
        Self::SignatureLength,
        Self::ContentType,
        Self::DigestMissing,
        Self::DigestMalformed,
        Self::DigestAlgorithm,
        Self::OtherKey,
        Self::Target,
        Self::Authority,
        Self::BadSignature,
        Self::BodyMismatch,
    ];

    /// The reason as a metric's label, for instance `bad_signature`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotSigned => "not_signed",
            Self::Several => "several",
            Self::HeaderTooLong => "header_too_long",
            Self::Malformed => "malformed",
            Self::LabelMismatch => "label_mismatch",
            Self::ComponentMissing => "component_missing",
            Self::ComponentForeign => "component_foreign",
            Self::ComponentRepeated => "component_repeated",
            Self::ComponentParameters => "component_parameters",
            Self::ParameterForeign => "parameter_foreign",
            Self::Created => "created",
            Self::Expires => "expires",
            Self::Lifetime => "lifetime",
            Self::FromTheFuture => "from_the_future",
            Self::TooOld => "too_old",
            Self::Expired => "expired",
            Self::Algorithm => "algorithm",
            Self::Tag => "tag",
            Self::Nonce => "nonce",
            Self::KeyId => "key_id",
            Self::SignatureLength => "signature_length",
            Self::ContentType => "content_type",
            Self::DigestMissing => "digest_missing",
            Self::DigestMalformed => "digest_malformed",
            Self::DigestAlgorithm => "digest_algorithm",
            Self::OtherKey => "other_key",
            Self::Target => "target",
            Self::Authority => "authority",
            Self::BadSignature => "bad_signature",
            Self::BodyMismatch => "body_mismatch",
        }
    }
}
