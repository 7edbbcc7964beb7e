//! Changing the project's files, and putting them back.

use std::collections::BTreeMap;
use std::path::PathBuf;

use deploy_proto::image::ImageRef;
use deploy_proto::names::ServiceName;
use deploy_proto::problem::{Code, Problem};

use super::compose::{self, Model};
use super::files::{self, FilesError};
use super::patience::{BACK_PAUSE, may_pass};
use super::{DockerHost, Read};
use crate::config::Project;
use crate::deploy::deadlines::BACK_ATTEMPTS;
use crate::deploy::phase::Failure;
use crate::deploy::plan::{FileEdit, Plan};
use crate::deploy::port::{EditFailure, Summary};

/// How a file stands between what the plan found and what it leaves.
enum Stands {
    Old,
    New,
    /// A person edited it.
    Foreign {
        /// Whether what the edit writes stands in it all the same.
        has_new_images: bool,
    },
}

/// Why the old bytes are not everywhere.
enum NotOld {
    /// A person edited a file, and nothing of ours stands in it: all others are as they were.
    EditedByHand(Problem),
    /// A person edited a file that the new images stand in, or a file could not be read or written.
    Changed(Problem),
}

impl From<NotOld> for EditFailure {
    fn from(not_old: NotOld) -> Self {
        match not_old {
            NotOld::EditedByHand(problem) => Self::Undone(problem.into()),
            NotOld::Changed(problem) => Self::NotUndone(problem.into()),
        }
    }
}

impl DockerHost {
    /// Writes the planned bytes, asks Compose what it sees, and undoes the edit when that is more than was asked for.
    pub(super) async fn change_files(&self, project: &Project, plan: &Plan) -> Result<Summary, EditFailure> {
        // After a crash in here some files may be new already: begin anew from the old ones.
        self.put_back(plan).await?;
        let before = self
            .read(project)
            .await
            .map_err(|problem| EditFailure::Undone(problem.into()))?;
        match self.write_and_compare(project, plan, &before).await {
            Ok(()) => Ok(edited(plan)),
            Err(problem) => match self.put_back(plan).await {
                // What went wrong first is the reason; that a person was at it would only be a part of it.
                Ok(()) | Err(NotOld::EditedByHand(_)) => Err(EditFailure::Undone(problem.into())),
                Err(NotOld::Changed(_)) => Err(EditFailure::NotUndone(problem.into())),
            },
        }
    }

    async fn write_and_compare(&self, project: &Project, plan: &Plan, before: &Read) -> Result<(), Problem> {
        self.write(plan).await?;
        let after = self.read_afresh(project).await?;
        let Err(problem) = compare(plan, &before.model, &after.model) else {
            return Ok(());
        };
        if before.is_fresh {
            return Err(problem);
        }
        // The model of before was asked for earlier; an `env_file` may have changed since, which is none of our doing.
        if let Err(NotOld::EditedByHand(problem) | NotOld::Changed(problem)) = self.put_back(plan).await {
            return Err(problem);
        }
        let before = self.read_afresh(project).await?;
        self.write(plan).await?;
        let after = self.read_afresh(project).await?;
        compare(plan, &before.model, &after.model)
    }

    async fn write(&self, plan: &Plan) -> Result<(), Problem> {
        for edit in &plan.edits {
            replace(edit.path.clone(), edit.after.clone(), edit.before.clone()).await?;
        }
        Ok(())
    }

    /// Gives every file its old bytes that has the new ones. One that a person edited is left as it is.
    async fn put_back(&self, plan: &Plan) -> Result<(), NotOld> {
        let mut by_hand = None;
        remove_leftovers(plan).await;
        for edit in &plan.edits {
            match stands(edit).await.map_err(NotOld::Changed)? {
                Stands::Old => {}
                Stands::New => {
                    replace(edit.path.clone(), edit.before.clone(), edit.after.clone())
                        .await
                        .map_err(NotOld::Changed)?;
                }
                Stands::Foreign { has_new_images } => {
                    let detail = format!("{} was edited by hand during the deployment", edit.path.display());
                    let problem = Problem::new(Code::Edited, detail).hint("push again when nobody edits it");
                    if has_new_images {
                        return Err(NotOld::Changed(problem));
                    }
                    by_hand = Some(problem);
                }
            }
        }
        by_hand.map_or(Ok(()), |problem| Err(NotOld::EditedByHand(problem)))
    }

    /// Puts the previous images back into the files: the same bytes as before, or, in a file that a person edited
    /// meanwhile, the image references only.
    ///
    /// Tried several times: a disk that fails once must not be what leaves a project `stuck`.
    pub(super) async fn restore_files(&self, project: &Project, plan: &Plan) -> Result<Summary, Failure> {
        let mut attempt = 1;
        loop {
            match self.restore_once(project, plan).await {
                Err(problem) if attempt < BACK_ATTEMPTS && may_pass(&problem) => {
                    tracing::warn!(
                        attempt,
                        problem = problem.detail,
                        "the files are not restored yet"
                    );
                    tokio::time::sleep(BACK_PAUSE).await;
                    attempt += 1;
                }
                done => return done.map_err(Failure::from),
            }
        }
    }

    async fn restore_once(&self, project: &Project, plan: &Plan) -> Result<Summary, Problem> {
        let mut foreign = Vec::new();
        remove_leftovers(plan).await;
        for edit in &plan.edits {
            match stands(edit).await? {
                // Flushed also when they are there already: a crash may have come before the flush.
                Stands::Old => replace(edit.path.clone(), edit.before.clone(), edit.before.clone()).await?,
                Stands::New => replace(edit.path.clone(), edit.before.clone(), edit.after.clone()).await?,
                Stands::Foreign { .. } => foreign.push(edit.path.display().to_string()),
            }
        }
        if foreign.is_empty() {
            return Ok("files as they were".to_owned());
        }
        self.put_images_back(project, plan).await?;
        Ok(format!(
            "only the images in {}, which was edited by hand meanwhile",
            foreign.join(", ")
        ))
    }

    /// Checks that the files are as they were, or, where a person edited one, that Compose reads the previous images.
    pub(super) async fn check_restored(&self, project: &Project, plan: &Plan) -> Result<(), Problem> {
        let mut is_foreign = false;
        for edit in &plan.edits {
            match stands(edit).await? {
                Stands::Old => {}
                Stands::New => {
                    let detail = format!("{} holds the new images again", edit.path.display());
                    return Err(
                        Problem::new(Code::Edited, detail).hint("put the previous images back into it")
                    );
                }
                Stands::Foreign { .. } => is_foreign = true,
            }
        }
        if !is_foreign {
            return Ok(());
        }
        let read = self.read_afresh(project).await?;
        for service in &plan.services {
            let now = read.model.services.get(&service.service);
            let image: Option<ImageRef> = now.and_then(|now| now.image.as_deref()?.parse().ok());
            if image != service.old {
                let detail = format!(
                    "the files were edited by hand meanwhile, and {} has another image in them than before",
                    service.service
                );
                return Err(Problem::new(Code::Edited, detail)
                    .hint("look at its image line: what runs is the previous image"));
            }
        }
        Ok(())
    }

    async fn put_images_back(&self, project: &Project, plan: &Plan) -> Result<(), Problem> {
        let wanted: BTreeMap<ServiceName, ImageRef> = plan
            .services
            .iter()
            .filter_map(|service| Some((service.service.clone(), service.old.clone()?)))
            .collect();
        let read = self.read_afresh(project).await?;
        let edits =
            compose::edit(&read.sources, &read.model, &wanted).map_err(|refusal| Problem::from(&refusal))?;
        for edit in edits.files {
            replace(edit.path, edit.after, edit.before).await?;
        }
        Ok(())
    }
}

/// Whether Compose sees the planned images, and no other difference.
fn compare(plan: &Plan, before: &Model, after: &Model) -> Result<(), Problem> {
    if plan.gives_bytes_back {
        // More than images is meant to change. The bytes were a live release's, so these are its images.
        return compare_images(plan, after);
    }
    let wanted: BTreeMap<ServiceName, ImageRef> = plan
        .services
        .iter()
        .map(|service| (service.service.clone(), service.written.clone()))
        .collect();
    let beyond: Vec<String> = compose::beyond(before, after, &wanted)
        .iter()
        .map(ToString::to_string)
        .collect();
    if beyond.is_empty() {
        return Ok(());
    }
    let detail = format!(
        "with the edit `docker compose config` differs in more than the named images: {}",
        beyond.join("; ")
    );
    Err(Problem::new(Code::OtherServices, detail).hint(
        "name all services that share the image line, or give each service its own line in the Compose file",
    ))
}

/// Whether Compose sees the planned images.
fn compare_images(plan: &Plan, after: &Model) -> Result<(), Problem> {
    for service in &plan.services {
        let image = after
            .services
            .get(&service.service)
            .and_then(|seen| seen.image.as_deref()?.parse::<ImageRef>().ok());
        if image.as_ref() != Some(&service.written) {
            let detail = format!(
                "with the files as they were, `docker compose config` does not give {} the image of the release",
                service.service
            );
            return Err(Problem::new(Code::OtherServices, detail));
        }
    }
    Ok(())
}

async fn stands(edit: &FileEdit) -> Result<Stands, Problem> {
    let path = edit.path.clone();
    let bytes = blocking(move || files::read(&path)).await?;
    Ok(if bytes == edit.before {
        Stands::Old
    } else if bytes == edit.after {
        Stands::New
    } else {
        let stands_in = |text: &str| {
            !text.is_empty() && bytes.windows(text.len()).any(|window| window == text.as_bytes())
        };
        Stands::Foreign {
            // Without lines whole bytes were given back, and any part of them may stand there.
            has_new_images: edit.lines.is_empty() || edit.lines.iter().any(|line| stands_in(&line.after)),
        }
    })
}

async fn replace(path: PathBuf, new: Vec<u8>, expected: Vec<u8>) -> Result<(), Problem> {
    blocking(move || files::replace(&path, &new, &expected))
        .await
        .map(drop)
}

/// Removes what an edit that a crash cut off left beside the files.
async fn remove_leftovers(plan: &Plan) {
    let paths: Vec<PathBuf> = plan.edits.iter().map(|edit| edit.path.clone()).collect();
    let remove = move || paths.iter().for_each(|path| files::remove_leftover(path));
    // Cancelled only when the agent stops: the next attempt does it.
    drop(tokio::task::spawn_blocking(remove).await);
}

/// Waits for the disk on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FilesError> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| Problem::from(&error)),
        Err(_cancelled) => Err(Problem::new(Code::ShuttingDown, "the agent is being restarted")),
    }
}

fn edited(plan: &Plan) -> Summary {
    let files: Vec<_> = plan
        .edits
        .iter()
        .filter_map(|edit| edit.path.file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    let lines: usize = plan.edits.iter().map(|edit| edit.lines.len()).sum();
    match lines {
        0 if files.is_empty() => "no line changes".to_owned(),
        0 => format!("{} as the release left it", files.join(", ")),
        1 => format!("{}, 1 line", files.join(", ")),
        n => format!("{}, {n} lines", files.join(", ")),
    }
}
