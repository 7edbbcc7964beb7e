//! Refusals as RFC 9457 answers.

use std::time::Instant;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use deploy_proto::problem::{Code, MEDIA_TYPE, Problem, ProblemDocument};

use crate::history::HistoryError;
use crate::line_limit::LineLimit;

/// How many requests that failed by the database are logged in a minute: one tells what there is to know.
const DATABASE_LINES_PER_MINUTE: u32 = 10;
static DATABASE_LINES: LineLimit = LineLimit::per_minute(DATABASE_LINES_PER_MINUTE);

/// A problem on its way out.
#[derive(Debug)]
pub struct Refusal(Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<HistoryError> for Refusal {
    fn from(error: HistoryError) -> Self {
        if let Some(unsaid) = DATABASE_LINES.next(Instant::now()) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                unsaid,
                "the database cannot be used"
            );
        }
        Self(error.problem())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let document = ProblemDocument {
            r#type: "about:blank".to_owned(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            problem: self.0,
        };
        let mut response = (status, axum::Json(document)).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        response
    }
}

/// The answer to a path or method that is none of ours.
pub(super) async fn no_such_path() -> Refusal {
    Problem::new(Code::NotFound, "there is no such path or method in this API")
        .hint("is deployctl newer than the agent?")
        .into()
}
