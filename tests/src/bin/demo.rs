//! `make demo`: the main job on real containers, as a user would type it. Every command printed here is really run,
//! and everything it prints is its own output.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing is what a demo is for"
)]

use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use deploy_tests::agent::{Programs, programs};
use deploy_tests::clinic::Clinic;
use deploy_tests::http;
use deploy_tests::images::{Mode, Registry, free_port, temporary_dir};
use deploy_tests::until::until;
use tempfile::TempDir;

const GOOD: &str = "dev-8c1f2e0";
const SICK: &str = "dev-bad0ff5";
const PUSHED: [&str; 2] = ["auth_service", "api_gateway"];

fn main() -> ExitCode {
    let began = Instant::now();
    match demo() {
        Ok(()) => {
            say(&format!(
                "\nThat was all of it, in {} s. Everything the demo started is gone again.",
                began.elapsed().as_secs()
            ));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nThe demo did not go as it should: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    let programs = programs()?;
    chapter("A host with a Compose project: six services, four databases, one docker-compose.yml");
    let registry = Registry::start()?;
    let clinic = Clinic::start(&registry)?;
    let desk = Desk::new(programs, &clinic)?;
    let ps = clinic
        .compose(&[
            "ps",
            "--all",
            "--format",
            "table {{.Service}}\t{{.Image}}\t{{.Status}}",
        ])
        .text()?;
    say(&format!(
        "$ docker compose ps          # CLINIC={}",
        clinic.dir().display()
    ));
    say(ps.trim_end());

    chapter("First contact: a key for CI, the project registered, the agent started");
    desk.run("deployctl keygen --key-file ci.pem --name github-clinic", 0)?;
    desk.write_agent_file()?;
    desk.run("deploy-agent add $CLINIC --config etc", 0)?;
    desk.shorten_times(clinic.project())?;
    desk.run("deploy-agent check --config etc", 0)?;
    let _agent = desk.serve()?;
    desk.run("deploy-agent pin --config etc", 0)?;
    desk.write_deploy_file(&clinic)?;
    desk.run("cat deploy.toml", 0)?;

    chapter(&format!(
        "CI has built {} at {GOOD}: a push",
        PUSHED.join(" and ")
    ));
    let databases = clinic.database_ids();
    for service in PUSHED {
        clinic.push_version(service, Mode::Good, GOOD)?;
    }
    desk.run(&format!("deployctl push -e development -v {GOOD} --dry-run"), 0)?;
    desk.run(&format!("deployctl push -e development -v {GOOD}"), 0)?;
    for service in PUSHED {
        ensure!(
            clinic.service_version(service)? == GOOD,
            "{service} does not run {GOOD}"
        );
    }
    desk.run("deployctl status -e development", 0)?;
    desk.run("deployctl history -e development", 0)?;

    chapter(&format!("The next build, {SICK}, does not get healthy"));
    let before = clinic.file();
    clinic.push_version("auth_service", Mode::Good, SICK)?;
    clinic.push_version("api_gateway", Mode::Sick, SICK)?;
    desk.run(&format!("deployctl push -e development -v {SICK}"), 3)?;
    for service in PUSHED {
        ensure!(
            clinic.service_version(service)? == GOOD,
            "{service} does not run {GOOD} again"
        );
    }
    ensure!(
        clinic.file() == before,
        "docker-compose.yml does not have its old bytes"
    );
    say(
        "(checked by the demo: docker-compose.yml is byte for byte what it was, and both services answer with the good version)",
    );

    chapter("What this key may not push is refused");
    desk.run(
        "deployctl push -e development --image registry.example/miner:v1",
        4,
    )?;
    ensure!(clinic.database_ids() == databases, "a database was touched");
    desk.run("deployctl history -e development", 0)?;
    say("(checked by the demo: the four databases still run in the containers they started in)");
    Ok(())
}

/// Where the commands are typed: a folder with the keys and both configurations.
struct Desk {
    programs: Programs,
    folder: TempDir,
    clinic: PathBuf,
    registry: String,
    api: u16,
    monitor: u16,
}

impl Desk {
    fn new(programs: Programs, clinic: &Clinic) -> Result<Self> {
        let folder = temporary_dir("demo")?;
        fs::create_dir_all(folder.path().join("etc/projects.d"))?;
        Ok(Self {
            programs,
            folder,
            clinic: clinic.dir().to_owned(),
            registry: clinic.registry().host(),
            api: free_port()?,
            monitor: free_port()?,
        })
    }

    /// Prints a command as it is typed, runs it, and holds it to its exit code. `$CLINIC` is the project's folder.
    fn run(&self, typed: &str, exit_code: i32) -> Result<()> {
        say(&format!("\n{}", bold(&format!("$ {typed}"))));
        io::stdout().flush()?;
        let mut words = typed.split(' ').map(|word| match word {
            "$CLINIC" => self.clinic.display().to_string(),
            word => word.to_owned(),
        });
        let program = words.next().context("a command has a name")?;
        let status = self
            .command(&program)
            .args(words)
            .status()
            .with_context(|| format!("{program} did not start"))?;
        let code = status.code().unwrap_or(-1);
        if code != 0 || exit_code != 0 {
            say(&format!("[exit code {code}]"));
        }
        ensure!(
            code == exit_code,
            "`{typed}` ended with {code} instead of {exit_code}"
        );
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let path = match program {
            "deployctl" => self.programs.ctl.as_path(),
            "deploy-agent" => self.programs.agent.as_path(),
            other => Path::new(other),
        };
        let mut command = Command::new(path);
        // As in a CI step: the key is in the environment, nothing else of this machine's is.
        for variable in ["DEPLOYCTL_PIN", "GITHUB_ACTIONS", "GITHUB_SHA", "CI"] {
            command.env_remove(variable);
        }
        if let Ok(key) = fs::read_to_string(self.folder.path().join("ci.pem")) {
            command.env("DEPLOYCTL_KEY", key);
        }
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    fn write_agent_file(&self) -> Result<()> {
        let key = fs::read_to_string(self.folder.path().join("ci.pem"))?;
        let public = deploy_proto::signing::PrivateKey::from_text(&key)?.public();
        let (folder, api, monitor) = (self.folder.path().display(), self.api, self.monitor);
        let text = format!(
            "state_dir = \"{folder}/state\"\n\n[server]\nlisten = \"127.0.0.1:{api}\"\nnames = [\"127.0.0.1\"]\n\n\
             [monitor]\nlisten = \"127.0.0.1:{monitor}\"\n\n\
             [[key]]\nname = \"github-clinic\"\npublic = \"{public}\"\nprojects = [\"*\"]\n\
             allow = [\"push\", \"rollback\", \"status\", \"logs\"]\n"
        );
        let path = self.folder.path().join("etc/agent.toml");
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
        self.run("cat etc/agent.toml", 0)
    }

    /// A demo has less patience than a production host: 15 s to get healthy, 2 s to stay so.
    fn shorten_times(&self, project: &str) -> Result<()> {
        let path = self.folder.path().join(format!("etc/projects.d/{project}.toml"));
        let text = fs::read_to_string(&path)?;
        let is_time = |line: &&str| {
            ["wait", "settle"]
                .iter()
                .any(|key| line.trim_start_matches("# ").starts_with(key))
        };
        let rest: Vec<&str> = text.lines().filter(|line| !is_time(line)).collect();
        fs::write(
            &path,
            format!("wait = \"15s\"\nsettle = \"2s\"\n{}\n", rest.join("\n")),
        )?;
        say("\n(the demo sets wait = \"15s\" and settle = \"2s\" in etc/projects.d, so as not to bore you)");
        Ok(())
    }

    fn write_deploy_file(&self, clinic: &Clinic) -> Result<()> {
        let pin = self
            .command("deploy-agent")
            .args(["pin", "--config", "etc"])
            .output()?;
        let pin = String::from_utf8(pin.stdout)?;
        let images: String = PUSHED
            .iter()
            .map(|service| format!("{service} = \"{}/drassistant/{service}\"\n", self.registry))
            .collect();
        let text = format!(
            "project = \"{}\"\n\n[images]\n{images}\n[environment.development]\nhosts = [\"https://127.0.0.1:{}\"]\npin = \"{}\"\n",
            clinic.project(),
            self.api,
            pin.trim()
        );
        Ok(fs::write(self.folder.path().join("deploy.toml"), text)?)
    }

    /// Starts the agent as systemd would, and waits until it lives.
    fn serve(&self) -> Result<Serving> {
        say(&format!(
            "\n{}",
            bold("$ deploy-agent serve --config etc &          # systemctl enable --now deploy-agent")
        ));
        let log = File::create(self.folder.path().join("agent.log"))?;
        let child = self
            .command("deploy-agent")
            .args(["serve", "--config", "etc"])
            .stderr(log)
            .spawn()?;
        let mut serving = Serving(child);
        let alive = until("the agent lives", Duration::from_secs(10), || {
            if let Some(status) = serving.0.try_wait()? {
                bail!(
                    "the agent ended with {status}: {}",
                    fs::read_to_string(self.folder.path().join("agent.log"))?
                );
            }
            Ok(http::get(self.monitor, "/livez")
                .ok()
                .filter(|(status, _)| *status == 200))
        });
        alive.map(|_| serving)
    }
}

/// The running agent; ended with the demo.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn chapter(title: &str) {
    // A breath for those who read along; nobody is waited for in a log.
    if io::stdout().is_terminal() {
        thread::sleep(Duration::from_millis(400));
    }
    say(&format!("\n{}", bold(&format!("=== {title}"))));
}

fn bold(text: &str) -> String {
    if io::stdout().is_terminal() {
        format!("\u{1b}[1m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

fn say(text: &str) {
    println!("{text}");
}
