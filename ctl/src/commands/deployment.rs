//! One deployment to all hosts of a target: plan, ask, deliver, follow, tell. Push and rollback differ only in what
//! they send.
//!
//! Hosts are taken one after the other; the first failure stops the rollout.

use std::time::Instant;

use deploy_proto::exit_code::ExitCode;
use deploy_proto::names::{DeploymentId, ProjectName, Version};
use deploy_proto::release::{DeploymentKind, PlanView};
use deploy_proto::signing::PrivateKey;
use serde::Serialize;
use tokio::time::Instant as Moment;

use super::Session;
use super::interrupt::interrupted;
use super::view::View;
use crate::cli::Following;
use crate::client::deliver::{DeliverError, deliver};
use crate::client::follow::{FollowError, follow};
use crate::client::{Agent, ClientError};
use crate::error::Error;
use crate::key;
use crate::render::human::ending;
use crate::render::human::plan::{Detail, plan as plan_lines};
use crate::render::human::progress::is_the_same;
use crate::render::json_v1::{Deployment, Document};
use crate::report::{Ended, HostReport, Report};
use crate::target::Target;
use crate::target::host::Host;

/// What is asked of every host.
pub(super) struct Order<'o, B> {
    /// The word on the command line.
    pub(super) command: &'static str,
    /// What for.
    pub(super) kind: DeploymentKind,
    /// Its id, the same on all hosts.
    pub(super) id: DeploymentId,
    /// The label that was asked for.
    pub(super) version: Option<&'o Version>,
    /// Below `/v1/projects/{project}`: where it is sent.
    pub(super) path: &'static str,
    /// The same for the plan alone.
    pub(super) plan_path: &'static str,
    /// What is sent.
    pub(super) body: B,
    /// Whether it throws work of a person away: one at a terminal is asked wherever it goes.
    pub(super) discards: bool,
    /// The question to a person, when the environment wants one.
    pub(super) question: String,
}

/// Carries an order out, or with `dry_run` only shows what it would do.
pub(super) async fn run<B: Serialize>(
    session: &Session,
    target: &Target,
    order: &Order<'_, B>,
    following: &Following,
    dry_run: bool,
) -> Result<ExitCode, Error> {
    let project = target.project()?;
    let key = key::load(session.globals.key_file.as_deref(), &session.caller)?;
    let wants_yes = target.confirm || (order.discards && session.output.can_ask);
    let asks = wants_yes && !session.globals.yes && !dry_run;
    check(session, target, following, asks)?;
    announce(session, target, order, project);
    let rollout = Rollout {
        session,
        target,
        order,
        project,
        key: &key,
        following,
    };
    let begun = Instant::now();
    let hosts = if dry_run {
        rollout.dry_run().await?
    } else if asks {
        let plans = rollout.plans().await?;
        rollout.show(&plans, Detail::Short)?;
        if !session.output.ask(&order.question)? {
            return Err(Error::Declined);
        }
        rollout.deploy(plans.into_iter().map(Some).collect()).await?
    } else {
        rollout.deploy(vec![None; target.hosts.len()]).await?
    };
    let report = Report {
        kind: Some(order.kind),
        project: Some(project.clone()),
        version: order.version.cloned(),
        ..report(target, order.id.clone(), hosts, begun)
    };
    Ok(tell(session, order.command, &report))
}

/// What is wrong with the order before anything is sent.
fn check(session: &Session, target: &Target, following: &Following, asks: bool) -> Result<(), Error> {
    if asks && !session.output.can_ask {
        let place = target.place();
        return Err(Error::usage(
            format!("{place} wants a person's yes (confirm = true), and nobody can be asked here"),
            "say it with --yes",
        ));
    }
    if following.detach && target.hosts.len() > 1 {
        return Err(Error::usage(
            "--detach works on one host at a time: the next host begins when the one before has ended",
            "choose one with --host",
        ));
    }
    Ok(())
}

fn announce<B>(session: &Session, target: &Target, order: &Order<'_, B>, project: &ProjectName) {
    let paint = session.output.paint;
    let names: Vec<_> = target.hosts.iter().map(|host| host.name.as_str()).collect();
    let place = match &target.environment {
        Some(name) => format!("{name} ({})", names.join(", ")),
        None => names.join(", "),
    };
    let sign = match order.kind {
        DeploymentKind::Push => "->",
        DeploymentKind::Rollback | DeploymentKind::Reconcile | DeploymentKind::AutoRollback => "<-",
    };
    let id = paint.dim(&format!("id {}", order.id));
    session
        .output
        .message(&format!("{} {sign} {place}  {id}", paint.bold(project.as_str())));
}

/// A report that is not yet told what kind of deployment it is about.
pub(super) fn report(target: &Target, id: DeploymentId, hosts: Vec<HostReport>, begun: Instant) -> Report {
    Report {
        kind: None,
        project: None,
        id,
        version: None,
        place: target.place().to_owned(),
        environment: target.environment.clone(),
        arguments: target.arguments(),
        hosts,
        took: begun.elapsed(),
    }
}

/// Prints the summary and the document, and gives the exit code: that of the deployment, printed or not.
pub(super) fn tell(session: &Session, command: &'static str, report: &Report) -> ExitCode {
    let output = &session.output;
    let code = report.exit_code();
    output.messages(&ending::summary(report, output.paint));
    if let Some((title, text)) = ending::failure(report) {
        output.annotate(&title, &text);
    }
    if session.globals.json {
        let printed = output.json(&Document::new(command, code, Deployment::from(report)));
        if let Err(error) = printed {
            output.messages(&ending::error(&error, output.paint));
        }
    }
    code
}

struct Rollout<'r, B> {
    session: &'r Session,
    target: &'r Target,
    order: &'r Order<'r, B>,
    project: &'r ProjectName,
    key: &'r PrivateKey,
    following: &'r Following,
}

impl<'r, B: Serialize> Rollout<'r, B> {
    fn agent(&self, host: &'r Host) -> Result<Agent<'r>, ClientError> {
        Agent::new(host, &self.target.pins, self.key, &self.session.surroundings)
    }

    async fn plan(&self, host: &'r Host) -> Result<PlanView, Error> {
        let path = format!("/v1/projects/{}{}", self.project, self.order.plan_path);
        Ok(self.agent(host)?.post(&path, &self.order.body).await?)
    }

    /// The plans of all hosts; the first that cannot plan ends it, for nothing has begun yet.
    async fn plans(&self) -> Result<Vec<PlanView>, Error> {
        let mut plans = Vec::new();
        for host in &self.target.hosts {
            plans.push(self.plan(host).await?);
        }
        Ok(plans)
    }

    async fn dry_run(&self) -> Result<Vec<HostReport>, Error> {
        let mut reports = Vec::new();
        let mut plans = Vec::new();
        for host in &self.target.hosts {
            let (plan, ended) = match self.plan(host).await {
                Ok(plan) => (Some(plan), Ended::Planned),
                Err(error) => (None, Ended::Failed(error)),
            };
            plans.extend(plan.clone());
            reports.push(HostReport {
                host: host.clone(),
                plan,
                ended,
            });
        }
        if !self.session.globals.json && plans.len() == self.target.hosts.len() {
            self.show(&plans, Detail::Full)?;
        }
        Ok(reports)
    }

    /// Shows the hosts' plans: once when they are the same. A dry run's plan is data, one before a question a message.
    fn show(&self, plans: &[PlanView], detail: Detail) -> Result<(), Error> {
        let output = &self.session.output;
        let print = |lines: &[String]| match detail {
            Detail::Short => {
                output.messages(lines);
                Ok(())
            }
            Detail::Full => output.data(lines),
        };
        let paint = match detail {
            Detail::Short => output.paint,
            Detail::Full => output.data_paint,
        };
        let Some((first, rest)) = plans.split_first() else {
            return Ok(());
        };
        if rest.iter().all(|plan| is_the_same(first, plan)) {
            return print(&plan_lines(first, detail, paint));
        }
        for (host, plan) in self.target.hosts.iter().zip(plans) {
            print(std::slice::from_ref(&host.name))?;
            print(&plan_lines(plan, detail, paint))?;
        }
        Ok(())
    }

    /// Deploys to one host after the other, until one fails.
    async fn deploy(&self, shown: Vec<Option<PlanView>>) -> Result<Vec<HostReport>, Error> {
        let mut reports: Vec<HostReport> = Vec::new();
        let mut last_plan = None;
        for (host, shown) in self.target.hosts.iter().zip(shown) {
            let goes_on = reports.iter().all(HostReport::is_good);
            let report = if goes_on {
                self.deploy_to(host, shown.or(last_plan)).await?
            } else {
                HostReport {
                    host: host.clone(),
                    plan: None,
                    ended: Ended::Untouched,
                }
            };
            last_plan = report.plan.clone();
            reports.push(report);
        }
        Ok(reports)
    }

    async fn deploy_to(&self, host: &'r Host, shown: Option<PlanView>) -> Result<HostReport, Error> {
        let agent = self.agent(host)?;
        let titled = self.target.hosts.len() > 1;
        let view = View::new(self.session, &host.name, titled, self.following.jsonl, shown);
        let ended = tokio::select! {
            ended = self.deliver_and_follow(&agent, &view) => ended,
            never = view.beat() => match never {},
            () = interrupted() => Ended::Interrupted { accepted: view.is_accepted() },
        };
        Ok(HostReport {
            host: host.clone(),
            plan: view.end(),
            ended,
        })
    }

    async fn deliver_and_follow(&self, agent: &Agent<'_>, view: &View<'_>) -> Ended {
        let deadline = Moment::now() + self.session.globals.timeout;
        let path = format!("/v1/projects/{}{}", self.project, self.order.path);
        let mut lost = |error: &ClientError| view.lost(error);
        match deliver(agent, &path, &self.order.body, deadline, &mut lost).await {
            Ok(_) => view.accepted(),
            Err(error @ DeliverError::NotAccepted(_)) => return Ended::Failed(error.into()),
            Err(error @ DeliverError::Unknown(_)) => return Ended::StillRunning(error.into()),
        }
        if self.following.detach {
            return Ended::Accepted;
        }
        match follow(agent, &self.order.id, deadline, &mut |seen| view.see(seen)).await {
            Ok(outcome) => Ended::Outcome(Box::new(outcome)),
            // It was accepted: whatever keeps us from watching, the agent goes on.
            Err(error @ (FollowError::StillRunning | FollowError::Client(_))) => {
                Ended::StillRunning(error.into())
            }
        }
    }
}
