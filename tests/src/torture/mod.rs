//! The crash matrix: the agent is killed and its disk broken in every way and everywhere, and after each case a judge
//! says whether a promise was broken.
//!
//! A [`Group`] is a kind of cases; [`GROUPS`] lists them all, and `make torture` tries them. [`stage`] is what is broken (a
//! project of two services and an agent), [`judge`] holds the promises; [`kill`], [`fault`], [`disk`] and [`engine`] are the ways.

pub mod disk;
pub mod engine;
pub mod fault;
pub mod judge;
pub mod kill;
pub mod stage;
pub mod strace;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow};

use crate::images::Registry;
use stage::{Images, Stage};

/// So often a case is begun whose trouble was not reached: which thread makes a call is the scheduler's choice.
const ATTEMPTS: usize = 3;
/// One case of so many may stay unreached. More, and the group does not try what it says.
const UNREACHED_ONE_OF: usize = 10;

/// Cases of one kind.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// What `--only` calls it.
    pub name: &'static str,
    /// What is done in it, in a line.
    pub about: &'static str,
    /// Tries its cases and tells the tally what came of each. An error is trouble of the test itself.
    pub run: fn(&Options, &Tally) -> Result<()>,
}

/// All groups, in the order in which they are tried. Another kind of trouble is another entry here.
pub const GROUPS: &[Group] = &[
    kill::FORWARD,
    kill::WAY_BACK,
    kill::ROLLBACK,
    kill::ONE_BY_ONE,
    kill::RECONCILE,
    kill::CANCEL,
    kill::BAKE,
    kill::AGAIN,
    fault::SYNC,
    fault::WRITE,
    fault::NAME,
    fault::KILL,
    fault::START,
    fault::FOR_EVER,
    disk::STATE,
    disk::PROJECT,
    engine::ENGINE,
];

/// How a run goes.
#[derive(Debug, Clone)]
pub struct Options {
    /// What is drawn at random is drawn from this: the same seed, the same cases.
    pub seed: u64,
    /// So many cases of each group, drawn at random; all when none.
    pub sample: Option<usize>,
    /// How many projects, each with an agent of its own, are worked on side by side.
    pub workers: usize,
    /// Whether each case is told of as it ends.
    pub is_verbose: bool,
}

impl Options {
    /// The random numbers of a group: the same whether other groups are tried or not.
    pub fn random(&self, group: &str) -> Random {
        let name = group.bytes().fold(0_u64, |sum, byte| {
            sum.wrapping_mul(131).wrapping_add(u64::from(byte))
        });
        Random(self.seed ^ name)
    }

    /// The cases of a group that are tried.
    fn drawn<T>(&self, mut cases: Vec<T>, random: &mut Random) -> VecDeque<T> {
        let Some(sample) = self.sample else {
            return cases.into();
        };
        let mut drawn = VecDeque::new();
        while drawn.len() < sample && !cases.is_empty() {
            drawn.push_back(cases.swap_remove(random.below(cases.len())));
        }
        drawn
    }
}

/// Random numbers that are the same for the same seed (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to below the limit, which is at least 1.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % limit).unwrap_or_default()
    }
}

/// What came of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Came {
    /// It was tried, and these promises were broken. None: all is well.
    Tried(Vec<String>),
    /// What was to break was not reached, so nothing was tried.
    NotReached,
}

/// One case: what is done to a stage.
pub struct Case {
    /// What a person calls it.
    pub name: String,
    /// Does it and judges it; which attempt it is, from 0.
    #[expect(clippy::type_complexity, reason = "it is what a case is")]
    pub run: Box<dyn Fn(&mut Stage, usize) -> Result<Came> + Send>,
}

impl Case {
    fn new(name: String, run: impl Fn(&mut Stage) -> Result<Came> + Send + 'static) -> Self {
        Self::attempted(name, move |stage, _attempt| run(stage))
    }

    fn attempted(name: String, run: impl Fn(&mut Stage, usize) -> Result<Came> + Send + 'static) -> Self {
        Self {
            name,
            run: Box::new(run),
        }
    }
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// What came of the cases of a group.
#[derive(Debug, Default)]
pub struct Tally {
    inner: Mutex<Counts>,
    tell: Option<fn(&str)>,
}

#[derive(Debug, Default)]
struct Counts {
    of: usize,
    tried: usize,
    not_reached: usize,
    violations: Vec<String>,
}

impl Tally {
    /// An empty one; what there is to tell of a case goes there as it ends.
    pub fn telling(tell: Option<fn(&str)>) -> Self {
        Self {
            inner: Mutex::default(),
            tell,
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a case.
    pub fn add(&self, case: &str, came: &Came) {
        let mut counts = self.counts();
        let word = match came {
            Came::NotReached => {
                counts.not_reached += 1;
                "not reached"
            }
            Came::Tried(violations) => {
                counts.tried += 1;
                let named = violations.iter().map(|violation| format!("{case}: {violation}"));
                counts.violations.extend(named);
                if violations.is_empty() { "ok" } else { "VIOLATION" }
            }
        };
        if let Some(tell) = self.tell {
            tell(&format!("{case}: {word}"));
        }
    }

    /// How many cases the groups have, drawn or not.
    pub fn of(&self) -> usize {
        self.counts().of
    }

    /// How many cases were tried.
    pub fn tried(&self) -> usize {
        self.counts().tried
    }

    /// In how many cases what was to break was not reached.
    pub fn not_reached(&self) -> usize {
        self.counts().not_reached
    }

    /// Every broken promise, with its case; and that too little was tried, which a single case does not show.
    pub fn violations(&self) -> Vec<String> {
        let counts = self.counts();
        let all = counts.tried + counts.not_reached;
        let mut violations = counts.violations.clone();
        if counts.not_reached > 1 && counts.not_reached * UNREACHED_ONE_OF > all {
            violations.push(format!("{} of {all} cases were not reached", counts.not_reached));
        }
        violations
    }
}

/// Where cases are tried: the images, how a stage is made of them, and those that are there already.
struct Ground {
    images: Images,
    make: fn(&Images) -> Result<Stage>,
    ready: Vec<Stage>,
}

impl Ground {
    fn new(make: fn(&Images) -> Result<Stage>) -> Result<Self> {
        Ok(Self {
            images: Images::push(&Registry::start()?)?,
            make,
            ready: Vec::new(),
        })
    }

    fn stage(&mut self) -> Result<Stage> {
        match self.ready.pop() {
            Some(stage) => Ok(stage),
            None => (self.make)(&self.images),
        }
    }
}

/// Tries a case until what is to break is reached.
fn attempted(case: &Case, stage: &mut Stage) -> Result<Came> {
    for attempt in 0..ATTEMPTS {
        match (case.run)(stage, attempt)? {
            Came::NotReached => {}
            tried @ Came::Tried(_) => return Ok(tried),
        }
    }
    Ok(Came::NotReached)
}

/// Tries cases on several stages side by side. A stage on which a promise was broken is left, for a new one.
fn on_stages(
    options: &Options,
    group: &str,
    mut ground: Ground,
    cases: Vec<Case>,
    tally: &Tally,
) -> Result<()> {
    tally.counts().of += cases.len();
    let mut ready = std::mem::take(&mut ground.ready);
    let drawn = options.drawn(cases, &mut options.random(group));
    let queue = Mutex::new(drawn);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = |ready: Option<Stage>| -> Result<()> {
        let mut free = ready;
        while let Some(case) = next() {
            let mut stage = match free.take() {
                Some(stage) => stage,
                None => (ground.make)(&ground.images)?,
            };
            let began = Instant::now();
            let came = attempted(&case, &mut stage);
            // What cannot be finished is no success: the agent may be the one that hangs.
            let came =
                came.unwrap_or_else(|error| Came::Tried(vec![format!("{error:#}\n{}", stage.last_log())]));
            let name = format!("{} ({} ms)", case.name, began.elapsed().as_millis());
            tally.add(&name, &came);
            if came == Came::NotReached || came == Came::Tried(Vec::new()) {
                free = Some(stage);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let working: Vec<_> = (0..options.workers.max(1))
            .map(|_| {
                let (ready, work) = (ready.pop(), &work);
                scope.spawn(move || work(ready))
            })
            .collect();
        working
            .into_iter()
            .try_for_each(|one| one.join().map_err(|_| anyhow!("a worker panicked"))?)
    })
}
