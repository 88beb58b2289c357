//! What the package is made of: units that are valid and closed, time limits in step with the settings they stand for,
//! settings that pass their own checks, and, where the tools are there, the package itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use omni_inferd::config::{Config, Environment, proxy::Proxy};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn unit(name: &str) -> String {
    fs::read_to_string(root().join("systemd").join(name)).unwrap()
}

fn units() -> Vec<PathBuf> {
    fs::read_dir(root().join("systemd")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The last value of a directive.
fn value<'t>(text: &'t str, key: &str) -> &'t str {
    let line = text.lines().rfind(|line| line.starts_with(&format!("{key}=")));
    line.unwrap_or_else(|| panic!("no {key}=")).split_once('=').unwrap().1
}

/// The tool's output; `None`, said aloud, where it is missing.
fn tool(command: &mut Command) -> Option<Output> {
    match command.output() {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("skipped: {}: {error}", command.get_program().display());
            None
        }
    }
}

#[test]
fn services_are_closed_as_far_as_promised() {
    for (name, most) in [("omni-inferd.service", 30), ("omni-proxy.service", 15), ("omni-inferd-thp.service", 30)] {
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--offline=true", "--no-pager", &format!("--threshold={most}")]);
        let Some(output) = tool(command.arg(root().join("systemd").join(name))) else { return };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{name} is above {:.1}:\n{text}", f64::from(most) / 10.0);
        assert!(text.contains("Overall exposure level"), "{text}");
    }
}

#[test]
fn units_are_valid() {
    // The programs they start are not installed here; everything else is looked at as it is.
    let directory = tempfile::tempdir().unwrap();
    for path in units() {
        let text = fs::read_to_string(&path).unwrap();
        let mut stand_in = text.clone();
        for program in ["/usr/bin/omni-inferd", "/usr/bin/omni-proxy", "/usr/bin/omnictl"] {
            stand_in = stand_in.replace(program, "/bin/true");
        }
        fs::write(directory.path().join(path.file_name().unwrap()), stand_in).unwrap();
    }
    for path in units() {
        let mut command = Command::new("systemd-analyze");
        command.args(["verify", "--man=no"]).arg(directory.path().join(path.file_name().unwrap()));
        command.env("SYSTEMD_UNIT_PATH", format!("{}:", directory.path().display()));
        let Some(output) = tool(&mut command) else { return };
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let ours = |line: &&str| line.contains("omni-") && !line.contains("FileDescriptorStorePreserve");
        let faults: Vec<&str> = text.lines().filter(ours).collect();
        assert!(faults.is_empty(), "{}: {faults:#?}", path.display());
    }
}

#[test]
fn the_daemon_has_no_network_and_the_proxy_none_of_its_own() {
    for name in ["omni-inferd.service", "omni-proxy.service"] {
        let text = unit(name);
        for (key, wanted) in
            [("PrivateNetwork", "yes"), ("RestrictAddressFamilies", "AF_UNIX"), ("CapabilityBoundingSet", "")]
        {
            assert_eq!(value(&text, key), wanted, "{name}: {key}");
        }
    }
    assert_eq!(value(&unit("omni-inferd.socket"), "ListenStream"), "/run/omni-inferd/omni.sock");
    assert_eq!(
        value(&unit("omni-inferd.socket"), "SocketGroup"),
        Config::with_defaults(&Environment::pure()).daemon.group
    );
    assert!(unit("omni-proxy.socket").contains("\nListenStream=127.0.0.1:8080\n"));
}

#[test]
fn time_limits_are_in_step_with_the_settings() {
    let seconds = |text: &str, key: &str| -> u64 { value(text, key).trim_end_matches('s').parse().unwrap() };
    let drain = Config::with_defaults(&Environment::pure()).daemon.drain_timeout.as_secs();
    let daemon = unit("omni-inferd.service");
    assert_eq!(seconds(&daemon, "TimeoutStopSec"), drain + 15, "the margin the daemon itself asks for");
    assert!(seconds(&daemon, "WatchdogSec") >= 10);
    assert!(seconds(&unit("omni-proxy.service"), "TimeoutStopSec") > Proxy::default().drain_timeout.as_secs());
    // The codes with which daemon and proxy say that another start will not help.
    assert_eq!(value(&daemon, "RestartPreventExitStatus"), "77 78");
    assert_eq!(value(&unit("omni-proxy.service"), "RestartPreventExitStatus"), "78");
    assert_eq!((value(&daemon, "KillMode"), value(&daemon, "OOMPolicy")), ("mixed", "continue"));
}

#[test]
fn shipped_settings_pass_their_own_checks() {
    let check = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(root()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    check(env!("CARGO_BIN_EXE_omni-inferd"), &["--check", "--config", "config.example.toml"]);
    let text = fs::read_to_string(root().join("packaging/proxy.toml")).unwrap();
    let proxy = Proxy::parse(&text, Path::new("/etc/omni-inferd/proxy.toml")).unwrap();
    assert_eq!(proxy.keys.as_deref(), Some(Path::new("/etc/omni-inferd/keys")), "never open without keys");
    assert_eq!(proxy.socket, Path::new(value(&unit("omni-inferd.socket"), "ListenStream")));
}

#[test]
fn names_agree_over_all_files() {
    let read = |file: &str| fs::read_to_string(root().join(file)).unwrap();
    let users = read("packaging/sysusers.conf");
    let words = |kind: &str| -> Vec<String> {
        let lines = users.lines().filter_map(|line| line.strip_prefix(kind));
        lines.map(|line| line.split_whitespace().next().unwrap().to_string()).collect()
    };
    assert_eq!(
        (words("u "), words("g ")),
        (vec!["omni-inferd".into()], vec!["omni".into(), "omni-admin".into(), "omni-keys".into()])
    );
    // A static group of this name would keep the dynamic user of the same name from being made.
    assert!(unit("omni-proxy.service").contains("DynamicUser=yes") && !words("g ").contains(&"omni-proxy".to_string()));
    for group in value(&unit("omni-proxy.service"), "SupplementaryGroups").split(' ') {
        assert!(words("g ").contains(&group.to_string()), "{group}");
    }
    assert_eq!(value(&unit("omni-inferd.service"), "User"), "omni-inferd");
    let newest = read("packaging/changelog");
    assert!(newest.starts_with(&format!("omni-inferd ({})", env!("CARGO_PKG_VERSION"))), "the changelog is behind");
    for script in ["postrm", "prerm"] {
        let text = read(&format!("packaging/{script}"));
        for path in units() {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(text.contains(&name), "{script} forgets {name}");
        }
    }
}

#[test]
fn maintainer_scripts_are_plain_shell() {
    let scripts = [
        "packaging/postinst",
        "packaging/prerm",
        "packaging/postrm",
        "scripts/deb.sh",
        "tests/vm/run.sh",
        "tests/vm/image.sh",
    ];
    for script in scripts {
        let output = Command::new("sh").arg("-n").arg(root().join(script)).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_package_is_built_and_clean() {
    for program in ["dpkg-deb", "objdump", "python3"] {
        if tool(Command::new(program).arg("--version")).is_none() {
            return;
        }
    }
    let out = tempfile::tempdir().unwrap();
    let binaries = Path::new(env!("CARGO_BIN_EXE_omnictl")).parent().unwrap();
    let mut build = Command::new(root().join("scripts/deb.sh"));
    build.arg(out.path()).env("BIN", binaries).env("CARGO", env!("CARGO")).env("PACK", "-Zgzip -z1");
    let output = build.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let package = out.path().join(format!("omni-inferd_{}_amd64.deb", env!("CARGO_PKG_VERSION")));
    let list = Command::new("dpkg-deb").arg("--contents").arg(&package).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    for file in [
        "./usr/bin/omni-inferd",
        "./usr/bin/omni-proxy",
        "./usr/bin/omnictl",
        "./etc/omni-inferd/config.toml",
        "./usr/lib/systemd/system/omni-inferd.socket",
        "./usr/lib/sysusers.d/omni-inferd.conf",
        "./usr/share/omni-inferd/60-omni-inferd.conf",
        "./usr/share/omni-inferd/hosts/host-a.toml",
        "./usr/share/omni-inferd/hosts/host-b.toml",
        "./usr/share/man/man1/omnictl-doctor.1.gz",
        "./usr/share/man/man8/omni-inferd.8.gz",
        "./usr/share/doc/omni-inferd/licences.txt.gz",
        "./usr/share/bash-completion/completions/omnictl",
    ] {
        assert!(list.lines().any(|line| line.ends_with(file)), "{file} is missing in\n{list}");
    }
    assert!(!list.contains("sysctl.d"), "installing changes no kernel setting");
    let Some(lintian) =
        tool(Command::new("lintian").args(["--allow-root", "--fail-on", "error,warning"]).arg(&package))
    else {
        return;
    };
    let text = String::from_utf8_lossy(&lintian.stdout).into_owned();
    assert!(lintian.status.success(), "{text}{}", String::from_utf8_lossy(&lintian.stderr));
}
