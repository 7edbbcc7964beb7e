//! An Engine of the test's own that goes away in every phase and in every way, and comes back.

use anyhow::Result;
use deploy_proto::event::PhaseName;

use super::{Came, Group, Options, Tally};
use crate::engine::with_own_engine;
use crate::faults::{Fault, PHASES, Struck};

/// Every fault in every phase.
pub const ENGINE: Group = Group {
    name: "engine",
    about: "the Docker Engine is stopped, restarted, killed, hung or hidden in a phase, and comes back",
    run,
};

fn run(options: &Options, tally: &Tally) -> Result<()> {
    let in_phase = |phase: PhaseName| Fault::BRIEF.map(|fault| (phase, fault));
    let mut all: Vec<(PhaseName, Fault)> = PHASES.into_iter().flat_map(in_phase).collect();
    // Compose runs in these.
    let for_minutes = [
        PhaseName::BeforeHook,
        PhaseName::Restarting,
        PhaseName::RestartingOld,
        PhaseName::WatchingOld,
    ];
    all.extend(for_minutes.map(|phase| (phase, Fault::HungForMinutes)));
    tally.counts().of += all.len();
    let cases = options.drawn(all, &mut options.random(ENGINE.name));
    with_own_engine(|engine| {
        let mut struck = Struck::start(engine)?.with_hooks()?;
        for (phase, fault) in cases {
            let name = format!("engine {fault:?} while {}", phase.as_str());
            match struck.survives(phase, fault) {
                Ok(_) => tally.add(&name, &Came::Tried(Vec::new())),
                Err(violation) => {
                    tally.add(&name, &Came::Tried(vec![format!("{violation:#}")]));
                    // Whatever is left of it must not count against the next case.
                    drop(struck);
                    struck = Struck::start(engine)?.with_hooks()?;
                }
            }
        }
        Ok(())
    })
}
