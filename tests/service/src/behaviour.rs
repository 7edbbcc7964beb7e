//! What the service is told to be by the environment of its image. Pure: it decides, `server` and `main` act.

use std::time::Duration;

/// How the service behaves; the `MODE` of its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Serves, and is well.
    Good,
    /// Serves, but `/health` answers 500.
    Sick,
    /// Exits 3 at once, with an error line.
    Crash,
    /// Well for this long, then exits 3.
    CrashLater(Duration),
    /// `/health` answers 503 for this long, then is well.
    SlowStart(Duration),
    /// Well and sick by turns of this length.
    Flapping(Duration),
    /// Prints a line and exits 0.
    Oneshot,
    /// Well, but takes no notice of SIGTERM.
    Deaf,
    /// Accepts connections and never answers.
    Hang,
    /// Well, and counts its starts in a file in `DATA_DIR`.
    Database,
    /// Well, until it is told otherwise: `/become/sick`, `/become/well`, `/become/sick-once`, `/become/dead`.
    Moody,
}

impl Mode {
    /// Reads `MODE`; `after` is `AFTER_MS`, for the modes in which something happens later.
    pub(crate) fn parse(mode: &str, after: Option<Duration>) -> Result<Self, String> {
        let after_or = |default_ms| after.unwrap_or(Duration::from_millis(default_ms));
        match mode {
            "good" => Ok(Self::Good),
            "sick" => Ok(Self::Sick),
            "crash" => Ok(Self::Crash),
            "crash-later" => Ok(Self::CrashLater(after_or(2000))),
            "slow-start" => Ok(Self::SlowStart(after_or(3000))),
            "flapping" => Ok(Self::Flapping(after_or(1000))),
            "oneshot" => Ok(Self::Oneshot),
            "deaf" => Ok(Self::Deaf),
            "hang" => Ok(Self::Hang),
            "database" => Ok(Self::Database),
            "moody" => Ok(Self::Moody),
            other => Err(format!("MODE={other} is not a mode of this service")),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Sick => "sick",
            Self::Crash => "crash",
            Self::CrashLater(_) => "crash-later",
            Self::SlowStart(_) => "slow-start",
            Self::Flapping(_) => "flapping",
            Self::Oneshot => "oneshot",
            Self::Deaf => "deaf",
            Self::Hang => "hang",
            Self::Database => "database",
            Self::Moody => "moody",
        }
    }

    /// What `/health` says this long after the start.
    pub(crate) fn health(self, since_start: Duration) -> Health {
        match self {
            Self::Good | Self::CrashLater(_) | Self::Deaf | Self::Database | Self::Moody => Health::Well,
            Self::Sick | Self::Crash | Self::Oneshot => Health::Sick,
            Self::SlowStart(warm_up) if since_start < warm_up => Health::Starting,
            Self::SlowStart(_) => Health::Well,
            Self::Flapping(turn) => {
                let turns = since_start.as_millis() / turn.as_millis().max(1);
                if turns.is_multiple_of(2) {
                    Health::Well
                } else {
                    Health::Sick
                }
            }
            Self::Hang => Health::Silent,
        }
    }
}

/// An answer of `/health`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    Well,
    Starting,
    Sick,
    /// No answer at all.
    Silent,
}

/// What the image's environment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Behaviour {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) port: u16,
    pub(crate) mode: Mode,
    pub(crate) data_dir: String,
}

impl Behaviour {
    /// Reads `SERVICE_NAME`, `SERVICE_VERSION`, `PORT`, `MODE`, `AFTER_MS` and `DATA_DIR`.
    pub(crate) fn parse(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let text = |name: &str, default: &str| variable(name).unwrap_or_else(|| default.to_owned());
        let port = text("PORT", "8080");
        let port = port.parse().map_err(|_| format!("PORT={port} is not a port"))?;
        let after = match variable("AFTER_MS") {
            None => None,
            Some(ms) => Some(ms.parse().map_err(|_| format!("AFTER_MS={ms} is not a number"))?),
        };
        Ok(Self {
            name: text("SERVICE_NAME", "service"),
            version: text("SERVICE_VERSION", "dev"),
            port,
            mode: Mode::parse(&text("MODE", "good"), after.map(Duration::from_millis))?,
            data_dir: text("DATA_DIR", "/data"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_environment_is_a_good_service_on_8080() {
        let behaviour = Behaviour::parse(|_| None).unwrap();
        assert_eq!((behaviour.port, behaviour.mode), (8080, Mode::Good));
    }

    #[test]
    fn every_mode_is_read_by_its_own_name() {
        for name in [
            "good",
            "sick",
            "crash",
            "crash-later",
            "slow-start",
            "flapping",
            "oneshot",
            "deaf",
            "hang",
            "database",
            "moody",
        ] {
            assert_eq!(Mode::parse(name, None).unwrap().name(), name);
        }
        assert!(Mode::parse("Good", None).is_err());
    }

    #[test]
    fn health_changes_when_the_mode_says_so() {
        let ms = Duration::from_millis;
        let slow = Mode::parse("slow-start", Some(ms(500))).unwrap();
        assert_eq!(
            [slow.health(ms(499)), slow.health(ms(500))],
            [Health::Starting, Health::Well]
        );
        let flapping = Mode::parse("flapping", Some(ms(100))).unwrap();
        assert_eq!(
            [0, 99, 100, 199, 200].map(|at| flapping.health(ms(at)) == Health::Well),
            [true, true, false, false, true]
        );
    }
}
