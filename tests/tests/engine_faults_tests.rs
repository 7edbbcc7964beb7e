//! The Docker Engine is stopped, restarted, killed, hung or hidden while a deployment is under way: after its return the
//! deployment ends by itself, and what it says is what runs. The whole matrix is a group of `make torture`.

use anyhow::{Result, ensure};
use deploy_proto::event::{Ending, Happened, PhaseName};
use deploy_proto::problem::Code;
use deploy_tests::engine::with_own_engine;
use deploy_tests::faults::{Fault, Struck};

#[test]
fn an_engine_that_goes_away_on_the_way_forward_does_not_lose_the_deployment() -> Result<()> {
    with_own_engine(|engine| {
        let mut struck = Struck::start(engine)?;
        for (phase, fault) in [
            (PhaseName::Accepted, Fault::Restarted),
            (PhaseName::Pulling, Fault::Killed),
            (PhaseName::Restarting, Fault::Stopped),
            (PhaseName::Watching, Fault::Hung),
        ] {
            let survived = struck.survives(phase, fault)?;
            // Nothing is wrong with the image, and nobody has to push again.
            assert_eq!(
                survived.outcome.result,
                Ending::Live,
                "{fault:?} while {}: {survived:?}",
                phase.as_str()
            );
        }
        Ok(())
    })
}

#[test]
fn an_engine_that_goes_away_on_the_way_back_still_ends_rolled_back() -> Result<()> {
    with_own_engine(|engine| {
        let mut struck = Struck::start(engine)?;
        for (phase, fault) in [
            (PhaseName::Restoring, Fault::SocketGone),
            (PhaseName::RestartingOld, Fault::Killed),
            (PhaseName::RestartingOld, Fault::Hung),
            (PhaseName::WatchingOld, Fault::Restarted),
        ] {
            let survived = struck.survives(phase, fault)?;
            assert_eq!(
                survived.outcome.result,
                Ending::RolledBack,
                "{fault:?} while {}: {survived:?}",
                phase.as_str()
            );
        }
        Ok(())
    })
}

#[test]
fn what_ends_with_the_engine_and_has_no_restart_policy_is_brought_back_or_named() -> Result<()> {
    with_own_engine(|engine| {
        let mut struck = Struck::start_without_restart_policy(engine, true)?;
        let survived = struck.survives(PhaseName::WatchingOld, Fault::Killed)?;
        assert_eq!(survived.outcome.result, Ending::RolledBack, "{survived:?}");
        // The service is ours to bring back; the databases are not, so they are named.
        let told = "auth_db and redis ended meanwhile and have no restart policy";
        let named = survived.events.iter().any(|event| {
            matches!(&event.what, Happened::PhaseDone { phase: PhaseName::WatchingOld, summary, .. }
                if summary.contains(told))
        });
        ensure!(named, "{:?}", survived.events);
        Ok(())
    })
}

#[test]
fn what_ends_with_the_engine_is_no_one_shot_that_did_its_work() -> Result<()> {
    with_own_engine(|engine| {
        let mut struck = Struck::start_without_restart_policy(engine, false)?;
        for (phase, fault, end) in [
            (PhaseName::Watching, Fault::Killed, Ending::Live),
            (PhaseName::WatchingOld, Fault::Killed, Ending::RolledBack),
            (PhaseName::WatchingOld, Fault::Stopped, Ending::RolledBack),
        ] {
            // That the service serves is checked in it.
            let survived = struck.survives(phase, fault)?;
            assert_eq!(
                survived.outcome.result,
                end,
                "{fault:?} while {}: {survived:?}",
                phase.as_str()
            );
        }
        Ok(())
    })
}

#[test]
fn without_an_engine_a_push_is_refused_with_what_to_do_and_works_when_it_is_back() -> Result<()> {
    with_own_engine(|engine| {
        let mut struck = Struck::start(engine)?;
        for (fault, reason, hint) in [
            (Fault::SocketGone, "cannot be reached", "systemctl status docker"),
            (Fault::Hung, "gave no answer", "journalctl -u docker"),
        ] {
            let problem = struck.refuses(fault)?;
            assert_eq!(problem.code, Code::Engine, "{problem:?}");
            assert!(problem.detail.contains(reason), "{problem:?}");
            assert!(
                problem.hint.as_ref().is_some_and(|said| said.contains(hint)),
                "{problem:?}"
            );
        }
        Ok(())
    })
}
