//! Why an edit was refused, in words that name the service, the file and the line. Pure.

use std::path::PathBuf;

use deploy_proto::image::{BadImage, ImageRef};
use deploy_proto::names::ServiceName;
use deploy_proto::problem::{Code, Problem};

/// Why Compose files cannot be read or changed as asked. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditRefusal {
    /// The project has no such service.
    #[error("there is no service {service} in this project; it has {}", names(known))]
    UnknownService {
        /// The service that was named.
        service: ServiceName,
        /// Those that exist.
        known: Vec<ServiceName>,
    },
    /// The service is built on the host and has no image.
    #[error("service {service} has no `image:`; it is built on this host")]
    NoImage {
        /// The service.
        service: ServiceName,
    },
    /// The file is not YAML that Compose accepts.
    #[error("{} line {line}, column {column}: {reason}", file.display())]
    Yaml {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// In the parser's words.
        reason: String,
    },
    /// The file is not UTF-8.
    #[error("{} is not UTF-8 (byte {byte})", file.display())]
    NotUtf8 {
        /// The file.
        file: PathBuf,
        /// The first byte that is not, counted from 0.
        byte: usize,
    },
    /// The environment file cannot be read by Compose either.
    #[error("{} line {line}: {reason}", file.display())]
    Dotenv {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Without the line's content.
        reason: &'static str,
    },
    /// A file that another one names does not exist.
    #[error("{} names {}, which does not exist", by.display(), file.display())]
    MissingFile {
        /// The file.
        file: PathBuf,
        /// Who names it.
        by: PathBuf,
    },
    /// `include` or `extends` of something that is not a local file.
    #[error("{} includes or extends {reference:?}, which is not a local file", file.display())]
    Remote {
        /// The file.
        file: PathBuf,
        /// What it names.
        reference: String,
    },
    /// The files refer to each other without end, or are too many or too large together.
    #[error("the project's files exceed a limit: {limit}")]
    TooMuch {
        /// The limit.
        limit: &'static str,
    },
    /// The image is written as a block scalar, with escapes, or is not a text at all.
    #[error("the image of service {service} is written {how} ({} line {line})", file.display())]
    Unusual {
        /// The service.
        service: ServiceName,
        /// How.
        how: &'static str,
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// What was found in the files is not what Compose says.
    #[error("the image of service {service} was found as {found:?} in {} line {line}, but Compose says {compose:?}", file.display())]
    NotUnderstood {
        /// The service.
        service: ServiceName,
        /// By us.
        found: String,
        /// By Compose.
        compose: String,
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// The image that stands there is not an image reference.
    #[error("the image of service {service} cannot be read: {reason}")]
    BadImage {
        /// The service.
        service: ServiceName,
        /// Why.
        reason: BadImage,
    },
    /// The image uses a variable that Compose does not find.
    #[error("the image of service {service} ({} line {line}) uses {variable}, which `.env` does not set", file.display())]
    VariableMissing {
        /// The service.
        service: ServiceName,
        /// The variable.
        variable: String,
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// Another repository than the one that is there.
    #[error("service {service} runs {there}; a push changes its tag, not its repository (asked for {asked})")]
    OtherRepository {
        /// The service.
        service: ServiceName,
        /// The repository in the file.
        there: String,
        /// The one asked for.
        asked: String,
    },
    /// The tag is put together from parts that one change cannot turn into the new tag.
    #[error(
        "the image of service {service} is put together from parts ({parts}); {wanted} cannot be written by changing one of them"
    )]
    InParts {
        /// The service.
        service: ServiceName,
        /// The parts, each with where it stands.
        parts: String,
        /// The tag or digest.
        wanted: String,
    },
    /// The line is shared with services that were not named.
    #[error("{} line {line} sets the image of {} too, which {} not named", file.display(), names(others), be(others))]
    SharedLine {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The services that were not named.
        others: Vec<ServiceName>,
    },
    /// The variable is used by services that were not named.
    #[error("the tag stands in the variable {variable} ({} line {line}), which sets the image of {} too, which {} not named", file.display(), names(others), be(others))]
    SharedVariable {
        /// The variable.
        variable: String,
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The services that were not named.
        others: Vec<ServiceName>,
    },
    /// Two named services share one place and want different images.
    #[error("{} share one place ({} line {line}) but are to run different versions", names(services), file.display())]
    Contradiction {
        /// The services.
        services: Vec<ServiceName>,
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// The edit gave something else than was asked for.
    #[error("the edit would make the image of service {service} {found:?} instead of {wanted}")]
    NotAsAsked {
        /// The service.
        service: ServiceName,
        /// What it would be.
        found: String,
        /// What it should be.
        wanted: ImageRef,
    },
}

impl From<&EditRefusal> for Problem {
    fn from(refusal: &EditRefusal) -> Self {
        let code = match refusal {
            EditRefusal::UnknownService { .. } => Code::UnknownService,
            EditRefusal::SharedLine { .. }
            | EditRefusal::SharedVariable { .. }
            | EditRefusal::Contradiction { .. } => Code::OtherServices,
            EditRefusal::NoImage { .. }
            | EditRefusal::Yaml { .. }
            | EditRefusal::NotUtf8 { .. }
            | EditRefusal::Dotenv { .. }
            | EditRefusal::MissingFile { .. }
            | EditRefusal::Remote { .. }
            | EditRefusal::TooMuch { .. }
            | EditRefusal::Unusual { .. }
            | EditRefusal::NotUnderstood { .. }
            | EditRefusal::BadImage { .. }
            | EditRefusal::VariableMissing { .. }
            | EditRefusal::OtherRepository { .. }
            | EditRefusal::InParts { .. }
            | EditRefusal::NotAsAsked { .. } => Code::ComposeFile,
        };
        let problem = Self::new(code, refusal.to_string());
        match hint(refusal) {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

fn hint(refusal: &EditRefusal) -> Option<String> {
    Some(match refusal {
        EditRefusal::NoImage { service } => {
            format!("give {service} an `image:` with the repository and tag that your pipeline builds")
        }
        EditRefusal::Yaml { .. } | EditRefusal::Dotenv { .. } | EditRefusal::MissingFile { .. } => {
            "correct the file; `docker compose config -q` on the host checks it".to_owned()
        }
        EditRefusal::NotUtf8 { .. } => "save the file as UTF-8".to_owned(),
        EditRefusal::Remote { .. } => {
            "copy the file into the project: remote files can write outside of it (CVE-2025-62725)".to_owned()
        }
        EditRefusal::Unusual { .. } => "write it as `image: repository:tag` on one line".to_owned(),
        EditRefusal::VariableMissing { variable, .. } => format!(
            "add {variable}=... to the `.env` beside the Compose file, or give it a default (`${{{variable}:-...}}`); \
             a shell's variables and `env_file:` do not count for the agent"
        ),
        EditRefusal::OtherRepository { .. } => {
            "to change the repository, edit the Compose file by hand and run `docker compose up -d` once"
                .to_owned()
        }
        EditRefusal::InParts { .. } => "keep the whole tag in one place, for instance ${TAG}".to_owned(),
        EditRefusal::SharedLine { others, .. } => {
            format!(
                "name {} as well, or give {} an own `image:` line",
                names(others),
                pronoun(others)
            )
        }
        EditRefusal::SharedVariable { others, variable, .. } => format!(
            "name {} as well, or give {} another variable than {variable}",
            names(others),
            pronoun(others)
        ),
        EditRefusal::Contradiction { .. } => {
            "push the same version to all of them, or give each a tag of its own".to_owned()
        }
        EditRefusal::UnknownService { .. }
        | EditRefusal::TooMuch { .. }
        | EditRefusal::NotUnderstood { .. }
        | EditRefusal::BadImage { .. }
        | EditRefusal::NotAsAsked { .. } => return None,
    })
}

fn names(services: &[ServiceName]) -> String {
    let all: Vec<&str> = services.iter().map(ServiceName::as_str).collect();
    all.join(", ")
}

fn be(services: &[ServiceName]) -> &'static str {
    if services.len() == 1 { "was" } else { "were" }
}

fn pronoun(services: &[ServiceName]) -> &'static str {
    if services.len() == 1 { "it" } else { "them" }
}
