//! Keys, pins and the configuration: what is refused at the start, what a reload changes, and whom a caller trusts.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::Result;
use deploy_tests::agent::{Agent, Settings, write_config};
use deploy_tests::clinic::Clinic;
use deploy_tests::command::Run;
use deploy_tests::images::{Mode, Registry};
use deploy_tests::until::until;
use deploy_tests::wire::Message;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn without_a_key_or_with_one_that_others_may_write_it_refuses_to_start() -> Result<()> {
    let mut agent = Agent::prepare("shop", Settings::default())?;
    agent.add(&agent.shop()?, "shop")?;
    let path = agent.config_dir().join("agent.toml");
    let good = fs::read_to_string(&path)?;
    let without_keys = good.split("[[key]]").next().unwrap_or_default().to_owned();
    write_config(&path, &without_keys)?;
    let (code, said) = agent.refuses_to_start()?;
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("no caller's key") && said.contains("deployctl keygen"),
        "{said}"
    );

    for mode in [0o644, 0o666, 0o660] {
        write_config(&path, &good)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        let (code, said) = agent.refuses_to_start()?;
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("chmod "), "{mode:o}: {said}");
    }

    // Every mistake at once, with line and hint.
    let bad = format!(
        "stat_dir = \"/x\"\n{}",
        good.replace("allow = ", "allw = ")
            .replace("ed25519:", "ed25519;")
    );
    write_config(&path, &bad)?;
    let (code, said) = agent.refuses_to_start()?;
    assert_eq!(code, 2, "{said}");
    for part in ["agent.toml:1", "state_dir", "allow", "public"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let check = agent
        .command(&["check", "--config"])
        .args([agent.config_dir()])
        .output()?;
    assert!(!check.status.success());

    write_config(&path, &good)?;
    agent
        .command(&["check", "--config"])
        .args([agent.config_dir()])
        .text()?;
    agent.resume()?;
    // A TLS key that others can read is no key.
    let tls_key = agent.state_dir().join("tls/key.pem");
    assert_eq!(fs::metadata(&tls_key)?.permissions().mode() & 0o077, 0);
    agent.kill9()?;
    fs::set_permissions(&tls_key, Permissions::from_mode(0o644))?;
    let (_, said) = agent.refuses_to_start()?;
    assert!(said.contains("chmod"), "{said}");
    Ok(())
}

#[test]
fn a_reload_takes_keys_in_and_out_and_a_broken_file_changes_nothing() -> Result<()> {
    let agent = Agent::start_without_containers(Settings::default())?;
    let path = agent.config_dir().join("agent.toml");
    let good = fs::read_to_string(&path)?;
    let (file, public) = agent.new_key("new")?;
    let ctl = agent.ctl()?;
    let new = agent.ctl_with_key(&file)?;
    let reloads = || agent.log().matches("configuration").count();
    let reload = |text: &str| -> Result<()> {
        let before = reloads();
        write_config(&path, text)?;
        agent.reload()?;
        until("the reload shows in the log", SOON, || {
            Ok((reloads() > before).then_some(()))
        })
    };

    ctl.expect(0, &["history"])?;
    new.expect(4, &["history"])?;
    let both = format!(
        "{good}\n[[key]]\nname = \"new\"\npublic = \"{public}\"\nprojects = [\"shop\"]\nallow = [\"status\"]\n"
    );
    reload(&both)?;
    ctl.expect(0, &["history"])?;
    new.expect(0, &["history"])?;

    // Broken: both stay, and the log says what is wrong.
    reload(&both.replace("[[key]]", "[[kee]]"))?;
    assert!(agent.log().contains("kee"), "{}", agent.log());
    ctl.expect(0, &["history"])?;
    new.expect(0, &["history"])?;
    assert!(
        agent.monitor("/metrics")?.1.contains("reload"),
        "{}",
        agent.monitor("/metrics")?.1
    );

    // The old one out.
    let old = ctl.public_key()?;
    reload(&both.replace(&old, &agent.new_key("other")?.1))?;
    ctl.expect(4, &["history"])?;
    new.expect(0, &["history"])?;
    Ok(())
}

#[test]
fn a_key_that_is_taken_out_does_not_stop_the_deployment_that_it_began() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &["auth_service"])?;
    let agent = Agent::start_with(&clinic, Settings::default().project("settle", "\"3s\""))?;
    let ctl = agent.ctl()?;
    clinic.push_version("auth_service", Mode::Good, "dev-a000001")?;
    let set = clinic.set_argument("auth_service", "dev-a000001");
    ctl.expect(0, &["push", "--set", &set, "--detach"])?;
    let path = agent.config_dir().join("agent.toml");
    let text = fs::read_to_string(&path)?;
    write_config(
        &path,
        &text.replace(&ctl.public_key()?, &agent.new_key("next")?.1),
    )?;
    agent.reload()?;
    until("the old key is refused", SOON, || {
        Ok((ctl.run(&["status"])?.code == 4).then_some(()))
    })?;
    let next = agent.ctl_with_key(&agent.folder().join("next.pem"))?;
    until("it is live", Duration::from_secs(30), || {
        let status = next.json(0, &["status"])?;
        Ok((status.at("/last/outcome/result") == "live").then_some(()))
    })?;
    assert_eq!(clinic.service_version("auth_service")?, "dev-a000001");
    Ok(())
}

#[test]
fn a_caller_trusts_the_pin_and_nothing_else() -> Result<()> {
    let mut agent = Agent::start_without_containers(Settings::default())?;
    let ctl = agent.ctl()?;
    let pin = agent.pin()?;
    ctl.expect(0, &["history"])?;

    // Without a pin a self-signed certificate is not taken.
    let bare = ctl.clone().untargeted();
    let url = agent.url();
    let target = ["--host", url.as_str(), "--project", "shop"];
    let without = bare.expect(5, &[&["history"][..], &target].concat())?;
    without.says("pin")?;
    // By variable, and with the key in a variable as in CI.
    let secret = bare.private_key()?.to_line();
    let in_ci = bare
        .clone()
        .env("DEPLOYCTL_PIN", &pin)
        .env("DEPLOYCTL_KEY", &secret);
    in_ci.expect(0, &[&["history"][..], &target].concat())?;
    let empty = bare.clone().env("DEPLOYCTL_PIN", &pin).env("DEPLOYCTL_KEY", "");
    empty.expect(2, &[&["history"][..], &target].concat())?;

    // The server's key changed: refused, with both pins.
    agent.kill9()?;
    fs::remove_dir_all(agent.state_dir().join("tls"))?;
    agent.resume()?;
    let new_pin = agent.pin()?;
    assert_ne!(new_pin, pin);
    let refused = ctl.expect(5, &["history"])?;
    refused.says(&pin)?.says(&new_pin)?;
    agent.ctl()?.expect(0, &["history"])?;
    Ok(())
}

#[test]
fn keys_of_every_origin_are_read_or_named_for_what_they_are() -> Result<()> {
    let agent = Agent::start_without_containers(Settings::default())?;
    let folder = agent.folder();
    let openssl = |arguments: &[&str]| Run::new("openssl").args(arguments).dir(folder).text();
    let protect = |name: &str| fs::set_permissions(folder.join(name), Permissions::from_mode(0o600));

    // PKCS#8 v1, as OpenSSL makes it, is a key like any other.
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", "v1.pem"])?;
    protect("v1.pem")?;
    let ctl = agent.ctl_with_key(&folder.join("v1.pem"))?;
    let path = agent.config_dir().join("agent.toml");
    let text = fs::read_to_string(&path)?;
    let table = format!(
        "\n[[key]]\nname = \"openssl\"\npublic = \"{}\"\nprojects = [\"shop\"]\nallow = [\"status\"]\n",
        ctl.public_key()?
    );
    write_config(&path, &format!("{text}{table}"))?;
    agent.reload()?;
    until("the new key is known", SOON, || {
        Ok((ctl.run(&["history"])?.code == 0).then_some(()))
    })?;

    openssl(&[
        "genpkey",
        "-algorithm",
        "rsa",
        "-pkeyopt",
        "rsa_keygen_bits:2048",
        "-out",
        "rsa.pem",
    ])?;
    let ssh = ["-q", "-t", "ed25519", "-N", "", "-f", "ssh"];
    Run::new("ssh-keygen").args(ssh).dir(folder).text()?;
    fs::write(
        folder.join("public.pem"),
        openssl(&["pkey", "-in", "v1.pem", "-pubout"])?,
    )?;
    fs::write(folder.join("empty.pem"), "")?;
    for (name, says) in [
        ("rsa.pem", "RSA"),
        ("ssh", "OpenSSH"),
        ("public.pem", "public key"),
        ("empty.pem", "empty"),
    ] {
        protect(name)?;
        let said = agent.ctl_with_key(&folder.join(name))?.expect(2, &["history"])?;
        said.says(says)?;
    }
    fs::set_permissions(folder.join("v1.pem"), Permissions::from_mode(0o644))?;
    ctl.expect(2, &["history"])?.says("chmod 600")?;

    // Printed for a CI secret: one line, and nothing on the disk.
    let printed = ctl
        .clone()
        .untargeted()
        .dir(folder)
        .env("DEPLOYCTL_KEY", "x")
        .run(&["keygen", "--print", "--json"])?;
    let document = printed.expect(0)?.json()?;
    assert!(
        document
            .0
            .pointer("/private")
            .is_some_and(|key| key.as_str().is_some_and(|key| key.starts_with("deployctl-key:")))
    );
    Ok(())
}

#[test]
fn no_private_key_is_in_a_log_an_answer_or_the_state() -> Result<()> {
    let agent = Agent::start_without_containers(Settings::default())?;
    let key = agent.ctl()?.private_key()?;
    let line = key.to_line();
    let secret = line.get(line.len().saturating_sub(24)..).unwrap_or_default();
    let answer = Message::get(&agent, "/v1/projects").signed(&key).send(&agent)?;
    assert_eq!(answer.status, 200);
    assert!(!answer.body.contains(secret) && !agent.logs().contains(secret));
    for file in ["history.db", "history.db-wal"] {
        let bytes = fs::read(agent.state_dir().join(file)).unwrap_or_default();
        assert!(
            !bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes()),
            "{file}"
        );
    }
    Ok(())
}
