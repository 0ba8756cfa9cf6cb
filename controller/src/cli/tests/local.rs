//! Commands that need no agent: help, mistakes, configuration, certificates.

use std::os::unix::fs::PermissionsExt;

use super::*;

async fn plain(args: &[&str]) -> Ran {
    let mut all = vec!["pveletctl"];
    all.extend(args);
    run_plain(&all, None, |_| {}).await
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[tokio::test]
async fn help_teaches_and_documents_the_exit_status() {
    let ran = plain(&["--help"]).await.expect(Exit::Ok);
    for words in ["Examples:", "pveletctl clone", "Exit status:", "3  some hosts failed", "NO_COLOR", "$PVELETCTL_CONFIG"] {
        assert!(ran.out.contains(words), "{words}");
    }
    assert!(!ran.out.contains('\u{1b}') && ran.err.is_empty());
    assert!(plain(&["clone", "--help"]).await.expect(Exit::Ok).out.contains("bridge=vmbr0,vlan=70"));
    assert_eq!(plain(&["--version"]).await.expect(Exit::Ok).out, format!("pveletctl {}\n", env!("CARGO_PKG_VERSION")));
    assert!(plain(&["version", "--client"]).await.expect(Exit::Ok).out.starts_with("pveletctl "));
    let script = plain(&["completion", "bash"]).await.expect(Exit::Ok).out;
    for words in ["_pveletctl", "storages", "volumes", "roll-back", "--from-snapshot", "io_uring"] {
        assert!(script.contains(words), "{words}");
    }
    let volumes = plain(&["volumes", "--help"]).await.expect(Exit::Ok).out;
    for words in ["pveletctl volumes attach 0b951f20 web-1", "hand-over", "--nobodys", "Examples:"] {
        assert!(volumes.contains(words), "{words}: {volumes}");
    }
    assert!(plain(&["volume", "create", "--help"]).await.expect(Exit::Ok).out.contains("--from-snapshot 0b951f20@before-upgrade"));
}

#[tokio::test]
async fn mistakes_name_option_value_and_remedy() {
    let clone = ["clone", "--template", "9000", "--name", "a"];
    let cases: &[(&[&str], &[&str])] = &[
        (&["clone", "--name", "a"], &["--template", "--tag"]),
        (&["clone", "--template", "99", "--name", "a"], &["--template", "'99'", "100 to 999999999"]),
        (&["clone", "--template", "9000", "--name", "a_b"], &["--name", "'a_b'", "letters, digits and '-'"]),
        (&[&clone[..], &["--storage", "x1"]].concat(), &["--full"]),
        (&[&clone[..], &["--cores", "0"]].concat(), &["--cores", "0", "1..=512"]),
        (&[&clone[..], &["--memory", "4X"]].concat(), &["--memory", "'4X'", "4096 or 4G"]),
        (&[&clone[..], &["--nic", "bridge=vmbr0,vlan=5000"]].concat(), &["--nic", "vlan '5000'", "use 1 to 4094"]),
        (&[&clone[..], &["--ip", "ip=10.0.0.5"]].concat(), &["--ip", "'10.0.0.5'", "10.0.0.5/24"]),
        (&[&clone[..], &["--tenant", "Team"]].concat(), &["--tenant", "'Team'", "lower-case"]),
        (&["vms", "--tag", "K8s"], &["--tag", "'K8s'", "lower-case"]),
        (&["op", "cancel", "7"], &["'operations/7'", "operations/<uuid>"]),
        (&["hosts", "--deadline", "soon"], &["--deadline", "'soon'", "90s"]),
        (&["hosts", "--agent", "https://x"], &["--agent", "'https://x'", "<name>:<port>"]),
        (&["hosts", "--output", "xml"], &["--output", "xml", "table, json, yaml"]),
        (&["host"], &["unrecognized subcommand 'host'", "hosts"]),
    ];
    for (args, words) in cases {
        let ran = plain(args).await.expect(Exit::Usage);
        for w in *words {
            assert!(ran.err.contains(w), "{args:?}: {w}: {}", ran.err);
        }
        assert!(ran.out.is_empty());
    }
}

#[tokio::test]
async fn a_wrong_or_missing_configuration_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    let text = path.display().to_string();
    let ran = plain(&["hosts"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("no ca is set: give --ca FILE, or set ca in"), "{}", ran.err);
    let ran = plain(&["--config", &text, "hosts"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("c.toml") && ran.err.contains("pveletctl config init"), "{}", ran.err);
    for (content, words) in [
        ("ca = \"a\"\nkeys = \"b\"\n", "unknown field `keys`, expected one of `ca`, `cert`, `key`"),
        ("ca = 7\n", "ca"),
        ("[[host]]\nname = \"a\"\n", "missing field `address`"),
        ("[[host]]\nname=\"a\"\naddress=\"x:1\"\n[[host]]\nname=\"a\"\naddress=\"y:1\"\n", "host 'a' is there twice"),
        ("tenant = \"Team\"\n", "'Team' is not a tenant"),
        ("ca=\"a\"\ncert=\"b\"\nkey=\"c\"\n", "no hosts are known: give --agent ADDRESS"),
        ("ca=\"a\"\ncert=\"b\"\nkey=\"c\"\n[[host]]\nname=\"a\"\naddress=\"x:y\"\n", "host 'a': address 'x:y' is malformed"),
        ("ca=\"a\"\ncert=\"b\"\nkey=\"c\"\n[[host]]\nname=\"a\"\naddress=\"x:1\"\n", "No such file"),
    ] {
        fs::write(&path, content).unwrap();
        let ran = plain(&["--config", &text, "hosts"]).await.expect(Exit::Usage);
        assert!(ran.err.contains(words), "{content}: {}", ran.err);
    }
    let ran = plain(&["--config", &text, "--host", "b", "hosts"]).await.expect(Exit::NotFound);
    assert!(ran.err.contains("--host 'b' is not in") && ran.err.contains("use one of a"), "{}", ran.err);
}

#[tokio::test]
async fn configuration_is_made_and_extended_and_comments_stay() {
    let world = World::new(two_hosts()).await;
    let file = |name: &str| world.dir.path().join(name).display().to_string();
    let (new, ca, cert, key) = (file("sub/new.toml"), file("ca.crt"), file("me.crt"), file("me.key"));
    let init = ["--config", &new, "--ca", &ca, "--cert", &cert, "--key", &key, "config", "init", "--tenant", "team-a"];
    plain(&init).await.expect(Exit::Ok);
    let ran = plain(&init).await.expect(Exit::Usage);
    assert!(ran.err.contains("exists already and is kept"), "{}", ran.err);
    fs::write(&new, fs::read_to_string(&new).unwrap() + "# mine\n").unwrap();
    let address = world.hosts[0].address.to_string();
    plain(&["--config", &new, "config", "add-host", "one", &address, "--node", "pve1", "--cluster", "lab"]).await.expect(Exit::Ok);
    let ran = plain(&["--config", &new, "config", "add-host", "one", &address]).await.expect(Exit::Usage);
    assert!(ran.err.contains("host 'one' is there twice"), "{}", ran.err);
    assert!(fs::read_to_string(&new).unwrap().contains("# mine\n"));
    plain(&["--config", &new, "vms"]).await.expect(Exit::Ok);
    plain(&["--config", &new, "start", "web-1"]).await.expect(Exit::Ok);
    assert_eq!(world.hosts[0].lock().operations[0].tenant, "team-a");
}

#[tokio::test]
async fn pki_from_the_first_ca_to_a_revocation() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pki").display().to_string();
    plain(&["pki", "init", "--dir", &dir, "--trust-domain", "pvelet.example"]).await.expect(Exit::Ok);
    let ran = plain(&["pki", "init", "--dir", &dir, "--trust-domain", "pvelet.example"]).await.expect(Exit::Failed);
    assert!(ran.err.contains("ca.key exists already: it is kept; use --force"), "{}", ran.err);
    let host =
        ["pki", "issue", "host", "--dir", &dir, "--cluster", "lab", "--node", "pve1", "--dns", "pve1.lab.example", "--ip", "192.0.2.1"];
    let json = plain(&[&host[..], &["-o", "json"]].concat()).await.expect(Exit::Ok).json();
    assert_eq!(json["identity"], "spiffe://pvelet.example/cluster/lab/host/pve1");
    let key = json["key"].as_str().unwrap();
    assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o7777, 0o600);
    plain(&host).await.expect(Exit::Failed);
    plain(&["pki", "issue", "person", "ann.b", "--dir", &dir, "--role", "admin"]).await.expect(Exit::Ok);
    plain(&["pki", "issue", "controller", "main", "--dir", &dir]).await.expect(Exit::Ok);
    plain(&["pki", "issue", "tenant", "team-a", "csi", "--dir", &dir, "--days", "7"]).await.expect(Exit::Ok);
    for file in ["host-lab_pve1", "admin-ann.b", "operator-main", "tenant-team-a_csi"] {
        for ending in ["crt", "key"] {
            assert!(PathBuf::from(format!("{dir}/issued/{file}.{ending}")).is_file(), "{file}.{ending}");
        }
    }
    let ran = plain(&["pki", "issue", "host", "--dir", &dir, "--cluster", "lab", "--node", "pve_1"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("node 'pve_1': not a node name: use 1 to 63 letters"), "{}", ran.err);

    let ran = plain(&["pki", "revoke", "spiffe://pvelet.example/role/admin/ann.b", "--dir", &dir]).await.expect(Exit::Ok);
    assert!(ran.out.starts_with("revoked "), "{}", ran.out);
    let twice = ["pki", "revoke", "spiffe://pvelet.example/role/admin/ann.b", "spiffe://nobody", "--dir", &dir, "-o", "json"];
    let json = plain(&twice).await.expect(Exit::NotFound).json();
    assert_eq!(json["revoked"], serde_json::json!([]), "it was before: {json}");
    plain(&["pki", "revoke", "spiffe://pvelet.example/role/admin/nobody", "--dir", &dir]).await.expect(Exit::NotFound);
    let ran = plain(&["pki", "issue", "controller", "main", "--dir", "/nonexistent"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("there is no CA in /nonexistent: name its folder with --dir"), "{}", ran.err);
    let ran = plain(&["pki", "revoke", "nope.crt", "--dir", &dir]).await.expect(Exit::Usage);
    assert!(ran.err.contains("'nope.crt': there is no such file; name a certificate's file, a serial number"), "{}", ran.err);
    let json = plain(&["pki", "crl", "--dir", &dir, "-o", "json"]).await.expect(Exit::Ok).json();
    assert_eq!(json["number"], 2);
    assert_eq!(json["revoked"][0]["identity"], "spiffe://pvelet.example/role/admin/ann.b");

    let ran = plain(&["pki", "show", &dir]).await.expect(Exit::Ok);
    let row = |words: &str| ran.out.lines().find(|l| l.contains(words)).unwrap_or_else(|| panic!("{words}: {}", ran.out)).to_owned();
    assert!(row("spiffe://pvelet.example ").contains("CA"));
    assert!(row("/host/pve1").contains("server  valid"), "{}", ran.out);
    assert!(row("/admin/ann.b").contains("client  revoked"));
    assert!(row("/tenant/team-a/csi").contains("client  ends soon"));
    assert_eq!(ran.out.lines().count(), 6);
    let json = plain(&["pki", "show", &format!("{dir}/issued/host-lab_pve1.crt"), "-o", "json"]).await.expect(Exit::Ok).json();
    assert_eq!(json[0]["names"], serde_json::json!(["pve1.lab.example", "192.0.2.1"]));
    let ran = plain(&["pki", "show", key]).await.expect(Exit::Failed);
    assert!(ran.err.contains("no PEM block CERTIFICATE"), "{}", ran.err);
}

/// A folder with a CA; the arguments that name it come last.
async fn new_pki(temp: &tempfile::TempDir) -> String {
    let dir = temp.path().join("pki").display().to_string();
    plain(&["pki", "init", "--trust-domain", "pvelet.example", "--dir", &dir]).await.expect(Exit::Ok);
    dir
}

#[tokio::test]
async fn a_certificate_that_could_not_be_written_is_not_kept() {
    let temp = tempfile::tempdir().unwrap();
    let dir = new_pki(&temp).await;
    let request = temp.path().join("pve1.csr");
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::new(Vec::new()).unwrap().serialize_request(&key).unwrap();
    fs::write(&request, csr.pem().unwrap()).unwrap();
    let request = request.display().to_string();
    let sign = |out: &str| ["pki", "sign", "--dir", &dir, "--cluster", "lab", "--node", "pve1", "--out", out, &request].map(str::to_owned);
    let sign_to = async |out: &str| plain(&sign(out).each_ref().map(String::as_str)).await;
    let copies = || fs::read_dir(format!("{dir}/certs")).unwrap().count();
    let ran = sign_to("/nonexistent/pve1.crt").await.expect(Exit::Failed);
    assert!(ran.err.contains("/nonexistent/pve1.crt"), "{}", ran.err);
    assert_eq!(copies(), 0, "it would live on for nobody");
    sign_to(&temp.path().join("pve1.crt").display().to_string()).await.expect(Exit::Ok);
    assert_eq!(copies(), 1);
}

#[tokio::test]
async fn during_a_rollover_both_lists_are_told_and_the_new_certificates_stay() {
    let temp = tempfile::tempdir().unwrap();
    let dir = new_pki(&temp).await;
    let pki = async |args: &[&str]| plain(&[&["pki"], args, &["--dir", &dir]].concat()).await;
    let issue = ["issue", "person", "--force", "--role", "reader"];
    for name in ["ann", "bob"] {
        pki(&[&issue[..], &[name]].concat()).await.expect(Exit::Ok);
    }
    pki(&["rollover", "start"]).await.expect(Exit::Ok);
    pki(&["rollover", "switch"]).await.expect(Exit::Ok);
    for name in ["ann", "bob"] {
        pki(&[&issue[..], &[name]].concat()).await.expect(Exit::Ok);
    }
    let ran = pki(&["revoke", "spiffe://pvelet.example/role/reader/ann"]).await.expect(Exit::Ok);
    assert!(ran.err.contains("warning: spiffe://pvelet.example/role/reader/ann: the certificate of the new CA stays valid"), "{}", ran.err);
    let ran = pki(&["revoke", "--replaced", "--dry-run"]).await.expect(Exit::Ok);
    assert!(ran.out.contains("/reader/bob") && !ran.out.contains("/reader/ann"), "{}", ran.out);
    assert!(ran.err.contains("nothing was revoked"), "{}", ran.err);
    let json = pki(&["revoke", "--replaced", "-o", "json"]).await.expect(Exit::Ok).json();
    assert_eq!((json[0]["status"].as_str(), json.as_array().unwrap().len()), (Some("revoked"), 1), "{json}");

    let json = pki(&["crl", "-o", "json"]).await.expect(Exit::Ok).json();
    let told: Vec<_> = json["revoked"].as_array().unwrap().iter().map(|r| r["identity"].as_str().unwrap()).collect();
    assert_eq!((json["number"].as_u64(), told.len()), (Some(1), 2), "{json}");
    assert!(told[0].ends_with("/ann") && told[1].ends_with("/bob"), "{json}");
    let ran = plain(&["pki", "show", &dir]).await.expect(Exit::Ok);
    let rows = |status: &str| ran.out.lines().filter(|l| l.contains("/reader/") && l.contains(status)).count();
    assert_eq!((rows("revoked"), rows("valid")), (2, 2), "{}", ran.out);
    pki(&["rollover", "finish"]).await.expect(Exit::Ok);
    plain(&["pki", "revoke", "--replaced", "x"]).await.expect(Exit::Usage);
    plain(&["pki", "revoke", "--dry-run", "x"]).await.expect(Exit::Usage);
    plain(&["pki", "revoke"]).await.expect(Exit::Usage);
}

#[tokio::test]
async fn the_list_beside_the_cas_counts_and_init_writes_its_path() {
    let world = World::new(two_hosts()).await;
    let file = |name: &str| world.dir.path().join(name).display().to_string();
    world.run(&["hosts"]).await.expect(Exit::Ok);
    fs::write(file("ca.crl"), "half-writt").unwrap();
    let ran = world.run(&["hosts"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("ca.crl: it holds no revocation list"), "{}", ran.err);
    let new = file("new.toml");
    let own = [file("ca.crt"), file("me.crt"), file("me.key")];
    let init = ["--config", &new, "--ca", &own[0], "--cert", &own[1], "--key", &own[2], "config", "init"];
    plain(&init).await.expect(Exit::Ok);
    assert!(fs::read_to_string(&new).unwrap().contains(&format!("crl = \"{}\"\n", file("ca.crl"))));
    // A file that is named has to be there.
    fs::remove_file(file("ca.crl")).unwrap();
    let ran = plain(&["--config", &new, "--agent", "127.0.0.1:1", "hosts"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("ca.crl: cannot be read") && ran.err.contains("name the right file for crl"), "{}", ran.err);
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named_with_its_option() {
    let world = World::new(two_hosts()).await;
    for option in ["ca", "cert", "key"] {
        let ran = world.run(&[&format!("--{option}"), "/nonexistent", "hosts"]).await.expect(Exit::Usage);
        assert!(
            ran.err.contains(&format!(
                "/nonexistent: cannot be read (No such file or directory (os error 2)); name the right file for {option}"
            )),
            "{}",
            ran.err
        );
    }
    let args = ["clone", "--host", "pve1", "--template", "9000", "--name", "a", "--ssh-key-file", "/nonexistent"];
    let ran = world.run(&args).await.expect(Exit::Usage);
    assert!(ran.err.contains("/nonexistent: cannot be read") && ran.err.contains("--ssh-key-file"), "{}", ran.err);
}

#[tokio::test]
async fn manual_pages_are_written() {
    let dir = tempfile::tempdir().unwrap();
    plain(&["generate-man", &dir.path().display().to_string()]).await.expect(Exit::Ok);
    assert!(fs::read_to_string(dir.path().join("pveletctl.1")).unwrap().contains("Exit status"));
    for page in ["clone", "storages", "volumes", "volumes-attach", "volumes-roll-back", "get-volume"] {
        assert!(dir.path().join(format!("pveletctl-{page}.1")).is_file(), "{page}");
    }
}

#[tokio::test]
async fn a_private_ssh_key_is_not_sent() {
    let world = World::new(two_hosts()).await;
    let key = world.dir.path().join("id");
    fs::write(&key, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
    let key = key.display().to_string();
    let ran =
        world.run(&["clone", "--host", "pve1", "--template", "9000", "--name", "a", "--ssh-key-file", &key]).await.expect(Exit::Usage);
    assert!(ran.err.contains("this is a private key") && ran.err.contains(".pub"), "{}", ran.err);
    for (twice, words) in [
        (["--nic", "bridge=a,index=1", "--nic", "bridge=b,index=1"], "index=1 is there twice"),
        (["--ip", "ip=dhcp", "--ip", "nic=0,ip6=auto"], "nic=0 is there twice"),
    ] {
        let args = [&["clone", "--host", "pve1", "--template", "9000", "--name", "a"][..], &twice].concat();
        assert!(world.run(&args).await.expect(Exit::Usage).err.contains(words));
    }
    assert!(world.hosts[0].lock().clones.is_empty());
}
