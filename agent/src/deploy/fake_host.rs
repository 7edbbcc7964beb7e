//! A host for tests of the runner: it says yes, no, or nothing at all. It never imitates Docker; what Docker does is
//! tested against Docker.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use deploy_proto::event::RunningService;
use deploy_proto::image::ImageRef;
use deploy_proto::names::ServiceName;
use deploy_proto::problem::{Code, Problem};
use tokio::sync::Notify;

use super::facts::{Facts, HostFacts, Offered, Ran, RunningFacts, ServiceFacts, SourceFile};
use super::phase::{Action, Failure};
use super::plan::{Edits, FileEdit, LineEdit, Moment, Plan, PlannedHook, ServicePlan};
use super::port::{EditFailure, Host, LogTail, Progress, Summary};
use crate::config::Project;

/// What the host answers to an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Yes,
    No,
    /// For an edit: it failed, and the files are as they were.
    NoAndUndone,
    /// Yes, once the test lets it go on.
    Held,
    Never,
}

/// A hook's name, and the variables that it was given.
pub(crate) type RanHook = (String, Vec<(String, String)>);

/// The host. Says yes to whatever it was not told otherwise.
#[derive(Debug, Default)]
pub(crate) struct FakeHost {
    answers: Mutex<HashMap<Action, Answer>>,
    asked: Mutex<Vec<Action>>,
    /// The hooks that ran, with their variables.
    hooks: Mutex<Vec<RanHook>>,
    /// The images that edits wrote, where one did.
    written: Mutex<BTreeMap<ServiceName, ImageRef>>,
    go_on: Notify,
}

pub(crate) const FILE: &str = "/srv/shop/compose.yaml";
pub(crate) const OLD_DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
pub(crate) const NEW_DIGEST: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

impl FakeHost {
    pub(crate) fn answer(&self, action: Action, answer: Answer) {
        self.answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(action, answer);
    }

    /// Lets an action go on that is held.
    pub(crate) fn go_on(&self) {
        self.go_on.notify_one();
    }

    /// What it was asked to do so far.
    pub(crate) fn asked(&self) -> Vec<Action> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The hooks that were run so far, with their variables.
    pub(crate) fn hooks(&self) -> Vec<RanHook> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn ask(&self, action: Action) -> Result<Summary, Answer> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(action);
        let answer = self
            .answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&action)
            .copied();
        match answer {
            None | Some(Answer::Yes) => Ok(format!("{action:?} done")),
            Some(no @ (Answer::No | Answer::NoAndUndone)) => Err(no),
            Some(Answer::Held) => {
                self.go_on.notified().await;
                Ok(format!("{action:?} done"))
            }
            Some(Answer::Never) => std::future::pending().await,
        }
    }

    /// The project as it is now.
    fn project(&self) -> Facts {
        let written = self
            .written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let facts = |name: &str, found: &str| {
            let image = written
                .get(&service(name))
                .cloned()
                .unwrap_or_else(|| found.parse().unwrap());
            let running = RunningFacts {
                image_id: format!("id of {image}"),
                image_ids: BTreeSet::from([format!("id of {image}")]),
                digest: image.digest().cloned().or_else(|| OLD_DIGEST.parse().ok()),
                containers: vec![format!("container of {name}")],
                config_hashes: BTreeSet::from(["made alone".to_owned()]),
                does_run: true,
                is_well: true,
            };
            ServiceFacts {
                image: Some(image),
                running: Some(running),
                ..ServiceFacts::default()
            }
        };
        Facts {
            services: BTreeMap::from([
                (
                    service("api"),
                    ServiceFacts {
                        depends_on: vec![service("db"), service("worker")],
                        ..facts("api", "acme/api:v1")
                    },
                ),
                (service("worker"), facts("worker", "acme/worker:v1")),
                (service("db"), facts("db", "postgres:16")),
            ]),
            files: vec![SourceFile {
                path: FILE.into(),
                bytes: b"old".to_vec(),
            }],
            free_bytes: u64::MAX,
            unset_variables: Vec::new(),
        }
    }

    async fn yes_or_no(&self, action: Action) -> Result<Summary, Failure> {
        self.ask(action).await.map_err(|_no| no(action))
    }
}

pub(crate) fn no(action: Action) -> Failure {
    Problem::new(Code::Engine, format!("{action:?} said no")).into()
}

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

impl Host for FakeHost {
    async fn facts(&self, _project: &Project) -> Result<Facts, Failure> {
        self.yes_or_no(Action::Plan).await?;
        Ok(self.project())
    }

    async fn resolve(&self, images: &BTreeSet<ImageRef>) -> BTreeMap<ImageRef, Result<Offered, Problem>> {
        let offered = |image: &ImageRef| {
            let digest = if image.tag() == Some("v1") {
                OLD_DIGEST
            } else {
                NEW_DIGEST
            };
            Offered {
                digest: digest.parse().unwrap(),
                platforms: Vec::new(),
            }
        };
        images
            .iter()
            .map(|image| (image.clone(), Ok(offered(image))))
            .collect()
    }

    async fn look_around(&self, _plan: &Plan, _ports: &BTreeSet<u16>) -> Result<HostFacts, Failure> {
        Ok(HostFacts::default())
    }

    async fn edits(
        &self,
        _project: &Project,
        wanted: &BTreeMap<ServiceName, ImageRef>,
    ) -> Result<Edits, Failure> {
        let lines = wanted
            .values()
            .map(|image| LineEdit {
                line: 1,
                before: "old".into(),
                after: image.to_string(),
            })
            .collect();
        let file = FileEdit {
            path: FILE.into(),
            before: b"old".to_vec(),
            after: b"new".to_vec(),
            lines,
        };
        Ok(Edits {
            files: vec![file],
            images: wanted.clone(),
            unpinned: BTreeSet::new(),
        })
    }

    async fn check_unchanged(
        &self,
        _project: &Project,
        _plan: &Plan,
        _progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        self.yes_or_no(Action::Watch).await
    }

    async fn pull(
        &self,
        _project: &Project,
        _plan: &Plan,
        _progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        self.yes_or_no(Action::Pull).await
    }

    async fn gate(&self, _project: &Project, _plan: &Plan) -> Result<Summary, Failure> {
        self.yes_or_no(Action::Gate).await
    }

    async fn run_hook(
        &self,
        _project: &Project,
        _plan: &Plan,
        hook: &PlannedHook,
        environment: &[(String, String)],
        _progress: Progress<'_>,
    ) -> Result<Vec<String>, Failure> {
        self.hooks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((hook.name.clone(), environment.to_vec()));
        let action = match hook.moment {
            Moment::BeforeChange => Action::BackUp,
            Moment::BeforeRestart => Action::RunBeforeHooks,
            Moment::AfterLive => Action::RunAfterHooks,
        };
        self.yes_or_no(action).await?;
        Ok(vec![format!("{} said", hook.name)])
    }

    async fn end_hooks(&self, _project: &Project) -> Result<(), Failure> {
        Ok(())
    }

    async fn edit(&self, _project: &Project, plan: &Plan) -> Result<Summary, EditFailure> {
        let summary = self.ask(Action::Edit).await.map_err(|answer| match answer {
            Answer::NoAndUndone => EditFailure::Undone(no(Action::Edit)),
            Answer::Yes | Answer::No | Answer::Held | Answer::Never => {
                EditFailure::NotUndone(no(Action::Edit))
            }
        })?;
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.extend(
            plan.services
                .iter()
                .map(|service| (service.service.clone(), service.written.clone())),
        );
        Ok(summary)
    }

    async fn restart(
        &self,
        _project: &Project,
        _plan: &Plan,
        _progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        self.yes_or_no(Action::Restart).await
    }

    async fn watch(
        &self,
        _project: &Project,
        _plan: &Plan,
        _progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        self.yes_or_no(Action::Watch).await
    }

    async fn restore(&self, _project: &Project, plan: &Plan) -> Result<Summary, Failure> {
        let summary = self.yes_or_no(Action::Restore).await?;
        let old = |service: &ServicePlan| Some((service.service.clone(), service.old.clone()?));
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.extend(plan.services.iter().filter_map(old));
        Ok(summary)
    }

    async fn restart_old(&self, _project: &Project, _plan: &Plan) -> Result<Summary, Failure> {
        self.yes_or_no(Action::RestartOld).await
    }

    async fn watch_old(
        &self,
        _project: &Project,
        _plan: &Plan,
        _progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        self.yes_or_no(Action::WatchOld).await
    }

    async fn running(&self, _project: &Project, services: &[ServiceName]) -> Vec<RunningService> {
        services
            .iter()
            .map(|service| RunningService {
                service: service.clone(),
                image: None,
                state: None,
            })
            .collect()
    }

    async fn ran(&self, _project: &Project) -> Result<BTreeMap<ServiceName, Ran>, Failure> {
        let facts = self.project();
        let ran = |(service, facts): (ServiceName, ServiceFacts)| {
            let running = facts.running?;
            let ran = Ran {
                image_id: running.image_id,
                config_hashes: running.config_hashes,
            };
            Some((service, ran))
        };
        Ok(facts.services.into_iter().filter_map(ran).collect())
    }

    async fn log_tails(&self, _project: &Project, services: &[ServiceName]) -> Vec<LogTail> {
        services
            .iter()
            .map(|service| LogTail {
                service: service.clone(),
                lines: vec![format!("{service} said")],
            })
            .collect()
    }
}
