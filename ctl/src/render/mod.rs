//! Events and answers as text: for people, for scripts (`json_v1`), for GitHub Actions. Pure: `output` prints it.

pub(crate) mod github;
pub(crate) mod human;
pub(crate) mod json_v1;
pub(crate) mod text;
