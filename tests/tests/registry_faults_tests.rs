//! The registry is slow, busy, broken, lying or gone in the middle of a pull: either the push goes through, or it is
//! refused before anything was stopped, with the image, the reason and what to do.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deploy_proto::event::{Ending, PhaseName};
use deploy_tests::agent::Agent;
use deploy_tests::clinic::Clinic;
use deploy_tests::ctl::{Ctl, Document};
use deploy_tests::engine::{Engine, with_own_engine_and};
use deploy_tests::images::{Image, Mode, Registry};
use deploy_tests::liar::{About, Liar, Lie};
use deploy_tests::until::until;
use deploy_tests::wire::Events;

const SERVICE: &str = "auth_service";
/// Large enough to be cut in the middle, small enough for a slow line.
const IMAGE_BYTES: u64 = 2_000_000;
/// One try for each layer: the five that are the Engine's default take 50 s to fail, by the same way.
const ONE_TRY: [&str; 2] = ["--max-download-attempts", "1"];

struct Host {
    liar: Liar,
    registry: Registry,
    clinic: Clinic,
    agent: Agent,
    ctl: Ctl,
    next: u32,
}

impl Host {
    fn start(engine: &Engine) -> Result<Self> {
        let liar = Liar::start()?;
        let registry = Registry::start_behind(engine, &liar)?;
        let clinic = Clinic::start_only(&registry, &[SERVICE])?;
        let agent = Agent::start(&clinic)?;
        Ok(Self {
            liar,
            registry,
            ctl: agent.ctl()?,
            clinic,
            agent,
            next: 0,
        })
    }

    /// Pushes a new good image; returns its tag and digest.
    fn new_image(&mut self) -> Result<(String, String)> {
        self.next += 1;
        let tag = format!("dev-{:07x}", self.next);
        let digest = self.push_as(&tag)?;
        Ok((tag, digest))
    }

    fn push_as(&self, tag: &str) -> Result<String> {
        Image::new(SERVICE, tag, Mode::Good)
            .extra_bytes(IMAGE_BYTES)
            .build_and_push(&self.registry, &format!("drassistant/{SERVICE}"), tag)
    }

    fn deploy(&self, exit: i32, tag: &str) -> Result<Document> {
        self.ctl
            .push(exit, &[&self.clinic.set_argument(SERVICE, tag)], &[])
    }

    /// Starts a deployment and waits until the liar has lied to its pull.
    fn lied_to(&self, tag: &str) -> Result<Events> {
        let id = format!("{:016x}", self.next);
        let set = self.clinic.set_argument(SERVICE, tag);
        self.ctl
            .expect(0, &["push", "--set", &set, "--id", &id, "--detach"])?;
        let mut events = Events::follow(&self.agent, &self.ctl.private_key()?, &id, None)?;
        events.reach(PhaseName::Pulling)?;
        until("the liar lies", Duration::from_secs(30), || {
            Ok((self.liar.lies() > 0).then_some(()))
        })?;
        Ok(events)
    }

    fn as_it_is(&self) -> Result<(String, String, Vec<String>)> {
        let container = self.clinic.container_id(SERVICE)?;
        Ok((self.clinic.file(), container, self.clinic.database_ids()))
    }

    /// Under this lie a push is refused for this reason, and nothing changes.
    fn refuses(&mut self, about: About, lie: Lie, reasons: &[&str]) -> Result<()> {
        let (tag, _) = self.new_image()?;
        let before = self.as_it_is()?;
        self.liar.lie(about, lie);
        let refused = self.deploy(9, &tag)?;
        ensure!(self.liar.lies() > 0, "nobody asked the liar");
        self.liar.be_honest();
        ensure!(self.as_it_is()? == before, "something changed");
        says(&refused, &tag, reasons)
    }

    /// Under this lie a push goes through.
    fn gets_through(&mut self, about: About, lie: Lie, times: Option<u32>) -> Result<()> {
        let (tag, digest) = self.new_image()?;
        match times {
            Some(times) => self.liar.lie_times(times, about, lie),
            None => self.liar.lie(about, lie),
        }
        let pushed = self.deploy(0, &tag)?;
        ensure!(self.liar.lies() > 0, "nobody asked the liar");
        self.liar.be_honest();
        ensure!(pushed.result() == "live", "{pushed:?}");
        ensure!(self.clinic.file().contains(&digest), "{}", self.clinic.file());
        Ok(())
    }
}

/// The refusal names the image, one of these reasons, and what to do.
fn says(refused: &Document, tag: &str, reasons: &[&str]) -> Result<()> {
    let (code, detail) = (refused.code(), refused.at("/outcome/problem/detail"));
    ensure!(code == "image_unavailable", "{refused:?}");
    ensure!(detail.contains(&format!("{SERVICE}:{tag}")), "{detail}");
    ensure!(reasons.iter().any(|reason| detail.contains(reason)), "{detail}");
    ensure!(!refused.at("/outcome/problem/hint").is_empty(), "{refused:?}");
    Ok(())
}

#[test]
fn a_registry_that_fails_or_lies_is_refused_before_anything_is_stopped() -> Result<()> {
    with_own_engine_and(&ONE_TRY, |engine| {
        let mut host = Host::start(engine)?;
        let denied = "the registry denies access";
        let broken = "the registry has an error of its own";
        let away = "the registry cannot be reached";
        let cases: [(About, Lie, &[&str]); 8] = [
            (About::Layers, Lie::Status(401, None), &[denied]),
            (
                About::Everything,
                Lie::Status(401, None),
                &[denied, "wants a login"],
            ),
            (About::Manifests, Lie::Status(503, None), &[broken]),
            (About::Everything, Lie::HungUp, &[away]),
            (
                About::Layers,
                Lie::Truncated,
                &[away, "does not match its digest"],
            ),
            (About::Layers, Lie::Damaged, &["does not match its digest"]),
            (About::Manifests, Lie::Damaged, &[""]),
            (
                About::Manifests,
                Lie::Status(429, Some(3600)),
                &["rate limit is reached"],
            ),
        ];
        for (about, lie, reasons) in cases {
            host.refuses(about, lie, reasons)
                .with_context(|| format!("{lie:?} about {about:?}"))?;
        }
        let missing = host.deploy(9, "dev-404")?;
        says(&missing, "dev-404", &["has no such tag"])?;

        // Gone in the middle of the pull.
        let (tag, _) = host.new_image()?;
        let before = host.as_it_is()?;
        host.liar.lie(About::Layers, Lie::Stalled);
        let mut events = host.lied_to(&tag)?;
        host.registry.stop();
        host.liar.lie(About::Everything, Lie::HungUp);
        let outcome = events.outcome()?;
        assert_eq!(outcome.result, Ending::Refused, "{outcome:?}");
        assert_eq!(host.as_it_is()?, before);

        host.registry.resume()?;
        host.liar.be_honest();
        assert_eq!(host.deploy(0, &tag)?.result(), "live");
        Ok(())
    })
}

#[test]
fn a_registry_that_is_slow_or_busy_for_a_moment_is_waited_for() -> Result<()> {
    with_own_engine_and(&ONE_TRY, |engine| {
        let mut host = Host::start(engine)?;
        let cases = [
            (About::Layers, Lie::Slow(500_000), None),
            (About::Manifests, Lie::Status(503, None), Some(2)),
            (About::Layers, Lie::Status(502, None), Some(1)),
            (About::Manifests, Lie::Status(429, Some(2)), Some(2)),
        ];
        for (about, lie, times) in cases {
            host.gets_through(about, lie, times)
                .with_context(|| format!("{lie:?} about {about:?}"))?;
        }

        // The tag moves while its layers come: what was resolved first is what runs.
        let (tag, first) = host.new_image()?;
        host.liar.lie(About::Layers, Lie::Stalled);
        let mut events = host.lied_to(&tag)?;
        let second = host.push_as(&tag)?;
        host.liar.be_honest();
        let outcome = events.outcome()?;
        assert_eq!(outcome.result, Ending::Live, "{outcome:?}");
        let file = host.clinic.file();
        assert!(
            file.contains(&first) && !file.contains(&second),
            "{first}, not {second}: {file}"
        );
        Ok(())
    })
}

#[test]
fn a_pull_that_stands_still_is_given_up_after_a_minute() -> Result<()> {
    with_own_engine_and(&ONE_TRY, |engine| {
        let mut host = Host::start(engine)?;
        let nothing = "nothing came from the registry for 60s";
        host.refuses(About::Layers, Lie::Stalled, &[nothing])?;
        host.gets_through(About::Layers, Lie::Slow(1_000_000), None)
    })
}
