//! Configurations with mistakes, and what is said of each.

/// `(agent.toml, the beginnings of the mistakes)`.
pub(super) const AGENT_MISTAKES: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "agent.toml: `[server]` with `names` is missing | add the names by which callers reach this host",
            "agent.toml: no caller's key is configured, so nobody could deploy | run `deployctl keygen` where you",
        ],
    ),
    (
        "[sever]\nnames = ['a']\n",
        &[
            "agent.toml: `[server]` with `names` is missing",
            "agent.toml: no caller's key is configured",
            "agent.toml:1: unknown key `sever` | did you mean `server`?",
        ],
    ),
    (
        "[server]\nlisten = '8443'\nnames = []\n",
        &[
            "agent.toml: no caller's key is configured",
            "agent.toml:2: an address to listen on is an IP address and a port | write \"0.0.0.0:8443\"",
            "agent.toml:3: `names` must list between 1 and 64 names | add the names by which",
        ],
    ),
    (
        "[server]\nlisen = '0.0.0.0:1'\nnames = ['https://a', 'b', 'b', 3]\n[key]\nname = 'ci'\n",
        &[
            "agent.toml:2: unknown key `lisen` in [server] | did you mean `listen`?",
            "agent.toml:3: `names` says this twice",
            "agent.toml:3: `names` lists texts, not a number",
            "agent.toml:3: \"https://a\" is not a host name",
            "agent.toml:4: `key` must be written [[key]], with two brackets, once for each; this is a table",
        ],
    ),
    // What could not be read is not reported as missing.
    (
        "[server\nnames = ['a']\n[monitor]\nlisten = 9618\n",
        &[
            "agent.toml:1: unclosed table",
            "agent.toml:4: `listen` in [monitor] must be a text in quotes | write",
        ],
    ),
    (
        "[server]\nnames = ['a']\nnames = ['b']\n[[key]]\n",
        &["agent.toml:3: duplicate key"],
    ),
    (
        "state_dir = 'var'\n[server]\nnames = 'a'\n[server.tls]\nkey = '/nowhere'\n[monitor]\nlisten = '0.0.0.0:8443'\n\
         [docker]\nsocket = 'docker.sock'\n[[key]]\nname = 'ci'\npublic = '@PUBLIC'\nprojects = ['*']\nallow = ['push']\n",
        &[
            "agent.toml:1: `state_dir` must be an absolute path",
            "agent.toml:3: `names` in [server] must be a list of texts",
            "agent.toml:4: `certificate` is missing in [server.tls]",
            "agent.toml:5: the file cannot be used: it does not exist",
            "agent.toml:9: `socket` must be an absolute path",
        ],
    ),
    (
        "[server]\nnames = ['a']\n[monitor]\nlisten = '0.0.0.0:8443'\n[[key]]\nname = 'ci'\n",
        &[
            "agent.toml:4: monitoring needs a port of its own",
            "agent.toml:5: `public` is missing in [[key]] | paste the ed25519:... that `deployctl keygen` printed",
            "agent.toml:5: `projects` is missing in [[key]]",
            "agent.toml:5: `allow` is missing in [[key]]",
        ],
    ),
    (
        "[server]\nnames = ['a']\n[[key]]\nname = 'a b'\npublic = 'xx'\nprojects = ['*', 'shop']\nservices = []\n\
         allow = ['pusch', 'all']\nexpires = '2027-06-30'\n",
        &[
            "agent.toml:4: key name \"a b\" is not valid",
            "agent.toml:5: a public key is ed25519: and 44 characters of base64",
            "agent.toml:6: `projects` has * and names",
            "agent.toml:7: `services` is empty",
            "agent.toml:8: `allow` does not know this word | did you mean \"push\"?",
            "agent.toml:8: `allow` does not know this word | known: \"push\", \"rollback\", \"status\", \"logs\"",
            "agent.toml:9: `expires` in [[key]] must be a date without quotes",
        ],
    ),
    (
        "[server]\nnames = ['a']\n[[key]]\nname = 'x'\npublic = 'deployctl-key:CANARY'\nprojects = ['-x']\nallow = []\n\
         expires = 2027-06-30T10:00:00\n",
        &[
            "agent.toml:5: this is a PRIVATE key",
            "agent.toml:6: project name \"-x\" is not valid",
            "agent.toml:7: `allow` is empty",
            "agent.toml:8: a date with a time needs an offset",
        ],
    ),
    (
        "[server]\nnames = ['a']\n[[key]]\nname = 'a'\npublic = '@PUBLIC'\nprojects = ['*']\nallow = ['push']\n\
         [[key]]\nname = 'a'\npublic = '@PUBLIC'\nprojects = ['*']\nallow = ['push']\nexpires = 2027-02-31\n",
        &[
            "agent.toml:9: another key has this name",
            "agent.toml:10: key a has the same public key",
            "agent.toml:13: invalid date",
        ],
    ),
];

/// `(projects.d/shop.toml, the beginnings of the mistakes)`.
pub(super) const PROJECT_MISTAKES: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "projects.d/shop.toml: `dir` is missing",
            "projects.d/shop.toml: `images` is missing | list what may be",
        ],
    ),
    (
        "dir = 'shop'\nimages = []\nfiles = []\n",
        &[
            "projects.d/shop.toml:1: `dir` must be an absolute path",
            "projects.d/shop.toml:2: `images` must list between 1 and 1000 repositories",
            "projects.d/shop.toml:3: `files` is empty",
        ],
    ),
    (
        "dir = '@HEREnone'\nimages = ['*', 'acme/api:v1']\nwait = 60\nsettle = '7'\nkeep = 0\nmin_free = '2gb'\n\
         pin = 'digets'\norder = 'parallel'\nallow_latest = 'yes'\n[[hook]]\nbefore = 'restart'\n",
        &[
            "projects.d/shop.toml:1: `dir` cannot be used: it does not exist",
            "projects.d/shop.toml:2: * may not stand before the first /",
            "projects.d/shop.toml:2: the list names repositories, without tag and digest",
            "projects.d/shop.toml:3: `wait` must be a text in quotes | write a whole number and a unit: 500ms, 7s",
            "projects.d/shop.toml:4: a duration needs a unit",
            "projects.d/shop.toml:5: `keep` must be between 1 and 1000",
            "projects.d/shop.toml:6: a size has a unit that is not known",
            "projects.d/shop.toml:7: `pin` does not know this word | did you mean \"digest\"?",
            "projects.d/shop.toml:8: `order` does not know this word | known: \"together\", \"one-by-one\"",
            "projects.d/shop.toml:9: `allow_latest` must be true or false, without quotes; this is a text",
            "projects.d/shop.toml:10: `command` is missing in [[hook]] | write the program and its arguments",
        ],
    ),
    (
        "dir = '@SHOP/compose.yaml'\nimages = ['acme/*']\nwait = '2h'\nsettle = '31m'\nmin_free = '2000TiB'\nkeep = -1\n",
        &[
            "projects.d/shop.toml:1: `dir` is not a folder",
            "projects.d/shop.toml:3: `wait` must be between 1s and 1h",
            "projects.d/shop.toml:4: `settle` must be between 0s and 30m",
            "projects.d/shop.toml:5: `min_free` must be at most 1024TiB",
            "projects.d/shop.toml:6: `keep` is negative or too large",
        ],
    ),
    (
        "dir = '@SHOP'\nfiles = ['x.yml', '.']\nimages = ['acme/*']\n[[probe]]\nservice = 'web'\n[[probe]]\nhttp = 'http://a'\n\
         tcp = 'a:1'\n[[probe]]\nservice = 'web'\nhttp = 'http://me:CANARY@a/'\nstatus = 1000\n[[probe]]\nservice = 'web'\n\
         tcp = 'a'\nstatus = 200\ntimeout = '0s'\n[probes]\n",
        &[
            "projects.d/shop.toml:2: the Compose file cannot be used: it does not exist",
            "projects.d/shop.toml:2: this is not a file",
            "projects.d/shop.toml:4: `http` is missing in [[probe]]",
            "projects.d/shop.toml:6: `service` is missing in [[probe]]",
            "projects.d/shop.toml:6: a probe has either `http` or `tcp`, this one has both",
            "projects.d/shop.toml:11: a probe's URL may not hold a user or a password",
            "projects.d/shop.toml:12: `status` must be an HTTP status between 200 and 599",
            "projects.d/shop.toml:15: the port is missing",
            "projects.d/shop.toml:16: `status` belongs to an http probe",
            "projects.d/shop.toml:17: `timeout` must be between 100ms and 60s",
            "projects.d/shop.toml:18: unknown key `probes` | did you mean `probe`?",
        ],
    ),
    (
        "dir = '@SHOP'\nimages = ['acme/*']\n[[hook]]\n[[hook]]\nbefore = 'restart'\nafter = 'live'\ncommand = []\n\
         [[hook]]\nbefore = 'lunch'\ncommand = 'npm run migrate'\nuser = 'root'\n[[hook]]\nafter = 'live'\nirreversible = true\n\
         command = ['npm run migrate']\ndeadline = '13h'\n[[hook]]\nbefore = 'everything'\nservice = 'api'\ncommand = ['', 1]\n\
         name = 'Back up'\n[[hook]]\nafter = 'live'\ncommand = ['./smoke']\nname = 'a'\n[[hook]]\nafter = 'live'\n\
         command = ['/nonexistent/smoke']\nname = 'a'\nservice = 'no spaces'\n",
        &[
            "projects.d/shop.toml:3: `before` is missing in [[hook]] | write before = \"everything\" (a backup)",
            "projects.d/shop.toml:3: `command` is missing in [[hook]]",
            "projects.d/shop.toml:4: a hook runs either before or after something, this one has both",
            "projects.d/shop.toml:7: `command` must have between 1 and 64 words",
            "projects.d/shop.toml:9: `before` does not know this word | known: \"everything\", \"restart\"",
            "projects.d/shop.toml:10: `command` in [[hook]] must be a list of texts",
            "projects.d/shop.toml:11: unknown key `user` in [[hook]] | known here: before, after",
            "projects.d/shop.toml:14: only a hook before the restart can be irreversible",
            "projects.d/shop.toml:15: a command is a list of words, not a line for a shell",
            "projects.d/shop.toml:16: `deadline` must be between 1s and 12h",
            "projects.d/shop.toml:19: a hook before everything runs on the host",
            "projects.d/shop.toml:20: `command` lists texts, not a number",
            "projects.d/shop.toml:20: the program's name is empty",
            "projects.d/shop.toml:21: this is no name for a hook | write at most 40",
            "projects.d/shop.toml:24: the path of a program on the host must be absolute",
            "projects.d/shop.toml:29: another hook of this project has this name",
            "projects.d/shop.toml:30: service name \"no spaces\" is not valid",
        ],
    ),
];
