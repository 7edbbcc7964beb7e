//! `cancel`: has a deployment end refused or rolled back, and watches it do so.

use deploy_proto::exit_code::ExitCode;

use super::Session;
use super::watch::{What, on_all};
use crate::cli::Cancel;
use crate::error::Error;

pub(super) async fn run(session: &Session, arguments: &Cancel) -> Result<ExitCode, Error> {
    let what = What::Cancel {
        detach: arguments.detach,
    };
    on_all(session, &arguments.id, arguments.jsonl, what).await
}
