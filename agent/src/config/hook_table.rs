//! The shape of `[[hook]]` in `projects.d/NAME.toml`: commands that run beside a deployment.

use std::path::Path;
use std::time::Duration;

use deploy_proto::names::ServiceName;
use toml::Spanned;

use super::agent_file::named;
use super::project_file::{Limits, duration};
use super::table::Table;
use super::values::Refusal;
use super::{Hook, HookMoment};

/// How long a hook may take, by default.
pub(super) const DEADLINE: Duration = Duration::from_secs(5 * 60);

const DEADLINE_LIMITS: Limits = Limits {
    least: Duration::from_secs(1),
    most: Duration::from_secs(12 * 3600),
    shown: "1s and 12h",
};
/// The most hooks of a project: they run one after the other, and every deployment waits for them.
const HOOKS_MOST: usize = 20;
/// The most words of a command: a longer one is a script of its own.
const WORDS_MOST: usize = 64;
/// The longest word of a command, in bytes.
const WORD_MAX_BYTES: usize = 4096;
/// The longest name, in bytes: it is part of a container's name, and stands in a line on a terminal.
const NAME_MAX_BYTES: usize = 40;

const SAY_WHEN: &str = "write before = \"everything\" (a backup), before = \"restart\" (a migration) or after = \"live\" (a smoke test)";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Everything,
    Restart,
}

/// Reads the hooks. The document has every mistake.
pub(super) fn hooks(table: &Table<'_>) -> Vec<Hook> {
    let tables = table.tables(
        "hook",
        &[
            "before",
            "after",
            "name",
            "service",
            "command",
            "deadline",
            "irreversible",
        ],
    );
    if let Some(table) = tables.get(HOOKS_MOST) {
        table.wrong_table(
            format!("more than {HOOKS_MOST} hooks"),
            "put what belongs together into one script",
        );
    }
    let mut hooks: Vec<Hook> = Vec::new();
    for table in &tables {
        let Some(hook) = hook(table, &hooks) else { continue };
        if hooks.iter().any(|earlier| earlier.name == hook.name) {
            table.wrong_value(
                "name",
                "another hook of this project has this name",
                "give each hook a name of its own",
            );
        }
        hooks.push(hook);
    }
    hooks
}

fn hook(table: &Table<'_>, earlier: &[Hook]) -> Option<Hook> {
    let service = table
        .parsed(
            "service",
            named::<ServiceName>("write the service as the Compose file calls it"),
        )
        .map(Spanned::into_inner);
    let moment = moment(table);
    if moment == Some(HookMoment::BeforeEverything) && table.has("service") {
        table.wrong_value(
            "service",
            "a hook before everything runs on the host: the new image is not there yet",
            "leave `service` out; the command may itself call `docker compose exec -T`",
        );
    }
    let command = command(table, table.has("service"));
    let deadline = duration(table, "deadline", &DEADLINE_LIMITS).unwrap_or(DEADLINE);
    let name = table
        .parsed("name", |text| name(text).map(|()| text.to_owned()))
        .map(Spanned::into_inner);
    if table.has("name") && name.is_none() {
        return None;
    }
    let (moment, command) = (moment?, command?);
    Some(Hook {
        name: name.unwrap_or_else(|| default_name(moment, &command, earlier)),
        moment,
        service,
        command,
        deadline,
    })
}

fn moment(table: &Table<'_>) -> Option<HookMoment> {
    let words = [("everything", Before::Everything), ("restart", Before::Restart)];
    let before = table.word("before", &words);
    let after = table.word("after", &[("live", HookMoment::AfterLive)]);
    let is_irreversible = table.boolean("irreversible");
    match (table.has("before"), table.has("after")) {
        (true, true) => {
            table.wrong_table(
                "a hook runs either before or after something, this one has both",
                "write two [[hook]]",
            );
            return None;
        }
        (false, false) => {
            table.missing("before", SAY_WHEN);
            return None;
        }
        (true, false) | (false, true) => {}
    }
    if is_irreversible.is_some() && before != Some(Before::Restart) {
        table.wrong_value(
            "irreversible",
            "only a hook before the restart can be irreversible",
            "remove it, or write before = \"restart\"",
        );
    }
    match before {
        Some(Before::Everything) => Some(HookMoment::BeforeEverything),
        Some(Before::Restart) => Some(HookMoment::BeforeRestart {
            is_irreversible: is_irreversible.unwrap_or(false),
        }),
        None => after,
    }
}

fn command(table: &Table<'_>, is_in_container: bool) -> Option<Vec<String>> {
    if !table.has("command") {
        table.missing(
            "command",
            "write the program and its arguments: command = [\"npm\", \"run\", \"migrate\"]",
        );
    }
    let words = table.words("command")?;
    if words.is_empty() || words.len() > WORDS_MOST {
        table.wrong_value(
            "command",
            format!("`command` must have between 1 and {WORDS_MOST} words"),
            "list the program and its arguments, and put what is longer into a script",
        );
        return None;
    }
    for word in &words {
        let text = *word.get_ref();
        if text.len() > WORD_MAX_BYTES || text.contains('\0') {
            table.wrong_hidden(
                word,
                format!("a word of a command has at most {WORD_MAX_BYTES} bytes, and none of them is 0"),
                "put what is longer into a script",
            );
            return None;
        }
    }
    let (program, _) = words.split_first()?;
    if program.get_ref().is_empty() {
        table.wrong(program, "the program's name is empty", "name the program first");
        return None;
    }
    if !is_in_container {
        check_program(table, program);
    }
    Some(words.iter().map(|word| (*word.get_ref()).to_owned()).collect())
}

/// A program on the host is named by an absolute path, or by a name that is looked up in the agent's `PATH`.
fn check_program(table: &Table<'_>, program: &Spanned<&str>) {
    let path = Path::new(program.get_ref());
    if path.is_absolute() {
        if let Err(error) = path.metadata() {
            let what = format!("the program cannot be used: {}", super::access::cause(&error));
            table.absent(
                program,
                what,
                "name a program of this host, or give the hook a `service`",
            );
        }
    } else if program.get_ref().contains('/') {
        table.wrong(
            program,
            "the path of a program on the host must be absolute",
            "begin it with /",
        );
    } else if program.get_ref().contains(char::is_whitespace) {
        table.wrong(
            program,
            "a command is a list of words, not a line for a shell",
            "write each word in quotes of its own: [\"npm\", \"run\", \"migrate\"]",
        );
    }
}

fn name(text: &str) -> Result<(), Refusal> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    let begins_well = text
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if begins_well && text.len() <= NAME_MAX_BYTES && text.bytes().all(is_plain) {
        return Ok(());
    }
    Err(Refusal {
        what: "this is no name for a hook".to_owned(),
        hint: format!(
            "write at most {NAME_MAX_BYTES} lower-case letters, digits, `.`, `_` and `-`, a letter or digit first"
        ),
    })
}

/// The program's own name, with a number where an earlier hook has it: `backup-shop`, `npm-2`.
fn default_name(moment: HookMoment, command: &[String], earlier: &[Hook]) -> String {
    let program = command.first().map(|program| program.rsplit('/').next());
    let own = program.flatten().unwrap_or_default().to_lowercase();
    let base = if name(&own).is_ok() {
        own
    } else {
        match moment {
            HookMoment::BeforeEverything => "backup".to_owned(),
            HookMoment::BeforeRestart { .. } => "migration".to_owned(),
            HookMoment::AfterLive => "smoke-test".to_owned(),
        }
    };
    let is_free = |name: &String| earlier.iter().all(|hook| hook.name != *name);
    let numbered = (2..).map(|number| format!("{base}-{number}"));
    std::iter::once(base.clone())
        .chain(numbered)
        .find(is_free)
        .unwrap_or(base)
}
