//! Looking at hosts' networks, and changing them.

use super::*;
use crate::agents::fake::network::Net;

const FILE: &str = "name: storage\ninterfaces:\n  - name: eth1.100\n    vlan: {parent: eth1, id: 100}\n    addresses: [192.0.2.1/24]\n";
const VLAN: [&str; 4] = ["--name", "storage", "--vlan", "eth1:100"];

async fn world() -> World {
    World::new(two_hosts()).await
}

fn net<T>(world: &World, host: usize, edit: impl FnOnce(&mut Net) -> T) -> T {
    edit(&mut world.hosts[host].network.lock())
}

fn calls(world: &World, host: usize) -> Vec<String> {
    net(world, host, |n| n.calls.clone())
}

fn file(world: &World, text: &str) -> String {
    let path = world.dir.path().join("network.yaml");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// `network <verb> --host pve1 <more>`.
async fn on(world: &World, verb: &str, more: &[&str]) -> Ran {
    world.run(&[&["network", verb, "--host", "pve1"], more].concat()).await
}

#[tokio::test]
async fn apply_shows_the_plan_asks_and_confirms_over_a_new_connection() {
    let world = world().await;
    let path = file(&world, FILE);
    let ran = on(&world, "apply", &["-f", &path]).await.expect(Exit::Usage);
    assert!(ran.err.contains("apply asks before it acts"), "{}", ran.err);
    let args = ["network", "apply", "--host", "pve1", "-f", &path];
    let ran = world.run_with(&args, Some("n\n"), |_| {}).await.expect(Exit::Failed);
    assert!(ran.err.contains("+ eth1.100") && ran.err.contains("nothing was changed"), "{}", ran.err);
    assert!(calls(&world, 0).is_empty());
    let ran = world.run_with(&args, Some("y\n"), |_| {}).await.expect(Exit::Ok);
    assert_eq!(calls(&world, 0), ["apply storage", "confirm"]);
    assert!(ran.out.contains("pve1: apply of network storage: succeeded in 2.5 s\n  confirmed over a new connection\n"), "{}", ran.out);
    assert!(net(&world, 0, |n| n.networks[0].interfaces[0].addresses == ["192.0.2.1/24"]));
    let ran = on(&world, "apply", &["-f", &path, "--yes"]).await.expect(Exit::Ok);
    assert_eq!(ran.out, "pve1: network storage is so already: nothing to do\n");
    assert_eq!(calls(&world, 0).len(), 2);
}

#[tokio::test]
async fn a_plan_touches_nothing_and_is_coloured_on_a_terminal() {
    let world = world().await;
    let ran = on(&world, "plan", &VLAN).await.expect(Exit::Ok);
    let expected = "pve1: network storage\n  + eth1.100\n/etc/network/interfaces.d/pvelet:\n  +auto eth1.100\nSteps: up eth1.100\n";
    assert_eq!(ran.out, expected);
    assert_eq!(on(&world, "apply", &[&VLAN[..], &["--dry-run"]].concat()).await.expect(Exit::Ok).out, expected);
    let args = [&["network", "plan", "--host", "pve1"], &VLAN[..]].concat();
    let coloured = world.run_with(&args, None, |io| io.colour = true).await;
    assert!(coloured.out.contains("\u{1b}[32m+ eth1.100\u{1b}[0m"), "{:?}", coloured.out);
    let json = on(&world, "plan", &[&VLAN[..], &["-o", "json"]].concat()).await.expect(Exit::Ok).json();
    assert_eq!((&json["changes"][0], &json["steps"][0]["action"]), (&"+ eth1.100".into(), &"up".into()));
    assert!(calls(&world, 0).is_empty());
    let check = v1::NetworkCheck {
        id: "net.source-line".into(),
        state: v1::CheckState::Failed.into(),
        severity: v1::CheckSeverity::Error.into(),
        seen: "no source line".into(),
        remedy: "add it".into(),
        ..Default::default()
    };
    net(&world, 0, |n| n.checks = vec![check]);
    let ran = on(&world, "apply", &[&VLAN[..], &["--yes"]].concat()).await.expect(Exit::Failed);
    assert!(ran.out.contains("error: net.source-line: no source line; add it\n"), "{}", ran.out);
    assert!(calls(&world, 0).is_empty(), "what would be refused is not sent");
}

#[tokio::test]
async fn a_file_is_a_manifest_or_a_plain_network_and_its_mistakes_are_told() {
    let world = world().await;
    let manifest = "apiVersion: pvelet.dev/v1alpha1\nkind: PveNetwork\nmetadata: {name: storage}\nspec:\n  hosts: {names: [pve1, pve2]}\n  interfaces:\n  \
                    - {name: eth1.100, vlan: {parent: eth1, id: 100}, hostAddresses: {pve1: [192.0.2.1/24], pve2: [192.0.2.2/24]}}\n";
    let path = file(&world, manifest);
    world.run(&["network", "apply", "--host", "pve2", "-f", &path, "--yes"]).await.expect(Exit::Ok);
    assert!(net(&world, 1, |n| n.networks[0].interfaces[0].addresses == ["192.0.2.2/24"]), "the host's own address");
    for (name, more, want) in [("theirs", &[][..], "team-a"), ("others", &["--tenant", "team-b"], "team-b")] {
        let path = file(&world, &manifest.replace("spec:\n", "spec:\n  tenant: team-a\n").replace("storage", name));
        world.run(&[&["network", "apply", "--host", "pve2", "-f", &path, "--yes"], more].concat()).await.expect(Exit::Ok);
        assert_eq!(net(&world, 1, |n| n.networks.iter().find(|n| n.name == name).unwrap().tenant.clone()), want);
    }
    for (text, want) in [
        (manifest.replace("id: 100", "id: 0"), "spec.interfaces[0].vlan.id = 0: use 1 to 4094"),
        (FILE.replace("eth1.100", "tap1"), "interfaces[0].name = tap1: tap* is the system's"),
        (FILE.replace("vlan:", "vlam:"), "neither a PveNetwork manifest nor a network"),
        ("kind: PveHost\n".into(), "apiVersion"),
        (format!("{manifest}---\n{}", manifest.replace("storage", "other")), "more than one PveNetwork"),
    ] {
        let path = file(&world, &text);
        let ran = on(&world, "apply", &["-f", &path, "--yes"]).await.expect(Exit::Usage);
        assert!(ran.err.contains(want), "{want}\n{}", ran.err);
    }
    let ran = on(&world, "apply", &[&VLAN[..], &["--mtu", "9", "--yes"]].concat()).await.expect(Exit::Usage);
    assert!(ran.err.contains("interfaces[0].mtu = 9: use 576"), "{}", ran.err);
    let ran = world.run(&[&["network", "apply", "--yes"], &VLAN[..]].concat()).await.expect(Exit::Usage);
    assert!(ran.err.contains("apply needs one host"), "{}", ran.err);
    on(&world, "apply", &["--yes"]).await.expect(Exit::Usage);
    on(&world, "apply", &["--vlan", "eth1:100", "--yes"]).await.expect(Exit::Usage);
    assert!(calls(&world, 0).is_empty());
}

#[tokio::test]
async fn what_the_host_undid_is_told_with_the_reason() {
    let world = world().await;
    net(&world, 0, |n| n.bad = true);
    let ran = on(&world, "apply", &[&VLAN[..], &["--yes"]].concat()).await.expect(Exit::Failed);
    assert!(
        ran.err.contains("error: pve1: apply of network storage: the change was undone: verification failed: no carrier"),
        "{}",
        ran.err
    );
    let ran = on(&world, "status", &[]).await.expect(Exit::Ok);
    assert!(ran.out.contains("rolled back") && ran.out.contains("undone by the agent; verification failed"), "{}", ran.out);
}

#[tokio::test]
async fn without_a_confirmation_the_change_waits_for_somebody_to_confirm_it_or_undo_it() {
    let world = world().await;
    let apply = [&VLAN[..], &["--yes", "--no-confirm"]].concat();
    let ran = on(&world, "apply", &apply).await.expect(Exit::StillRunning);
    assert!(ran.err.contains("s without: pveletctl network confirm "), "{}", ran.err);
    let ran = on(&world, "status", &[]).await.expect(Exit::Ok);
    let row = ran.out.lines().nth(1).unwrap();
    assert!(row.starts_with("pve1  storage      waiting  ") && row.contains(" s       no       pveletctl network confirm "), "{}", ran.out);
    let json = on(&world, "status", &["-o", "json"]).await.expect(Exit::Ok).json();
    assert!(json["hosts"][0]["last_change"]["seconds_left"].as_i64().unwrap() > 0);
    let ran = on(&world, "rollback", &[]).await.expect(Exit::Ok);
    assert_eq!(ran.out, "pve1: change of network storage: rolled back\n");
    assert!(!net(&world, 0, |n| n.has("storage")));
    let ran = on(&world, "confirm", &[]).await.expect(Exit::NotFound);
    assert!(ran.err.contains("no change waits on pve1; the last one is rolled back"), "{}", ran.err);

    on(&world, "apply", &apply).await.expect(Exit::StillRunning);
    let name = net(&world, 0, |n| n.last.clone().unwrap().operation);
    let ran = on(&world, "confirm", &[name.trim_start_matches("operations/")]).await.expect(Exit::Ok);
    assert_eq!(ran.out, "pve1: change of network storage: confirmed\n");
    on(&world, "confirm", &["3ce39e16-a6d8-4c28-ab96-a142978c9cd2"]).await.expect(Exit::NotFound);
    world.run(&["network", "confirm", "--host", "pve2"]).await.expect(Exit::NotFound);
}

#[tokio::test]
async fn remove_takes_the_network_away_unless_it_is_used() {
    let world = world().await;
    on(&world, "apply", &[&VLAN[..], &["--yes"]].concat()).await.expect(Exit::Ok);
    net(&world, 0, |n| n.users = vec![104]);
    let ran = on(&world, "remove", &["storage", "--yes"]).await.expect(Exit::Failed);
    assert!(ran.err.contains("NETWORK_IN_USE"), "{}", ran.err);
    net(&world, 0, |n| n.users.clear());
    let ran = world.run_with(&["network", "remove", "--host", "pve1", "storage"], Some("yes\n"), |_| {}).await.expect(Exit::Ok);
    assert!(ran.err.contains("- eth1.100") && ran.out.contains("remove of network storage: succeeded"), "{}{}", ran.err, ran.out);
    assert!(!net(&world, 0, |n| n.has("storage")));
    let ran = on(&world, "remove", &["Sto rage", "--yes"]).await.expect(Exit::Usage);
    assert!(ran.err.contains("'Sto rage' is not a network's name"), "{}", ran.err);
}

#[tokio::test]
async fn preflight_groups_by_how_bad_it_is_and_says_so_by_its_exit_status() {
    use v1::{CheckSeverity as Severity, CheckState as State};
    let world = world().await;
    let check = |id: &str, state: State, severity: Severity| v1::NetworkCheck {
        id: id.into(),
        state: state.into(),
        severity: severity.into(),
        seen: "seen".into(),
        why: "because".into(),
        remedy: "mend it".into(),
        interfaces: vec!["eth1".into()],
    };
    net(&world, 0, |n| {
        n.checks = vec![check("net.fine", State::Ok, Severity::Unspecified), check("net.note", State::Failed, Severity::Info)];
    });
    let ran = on(&world, "preflight", &[]).await.expect(Exit::Ok);
    assert!(
        ran.out.starts_with("pve1: 0 errors, 0 warnings, 0 unknown, 1 well\nCHECK     RESULT  INTERFACES  SEEN  WHY      REMEDY\n"),
        "{}",
        ran.out
    );
    assert!(!ran.out.contains("net.fine"));
    assert!(on(&world, "preflight", &["--all"]).await.expect(Exit::Ok).out.contains("net.fine"));
    net(&world, 0, |n| n.checks.push(check("net.warn", State::Failed, Severity::Warning)));
    on(&world, "preflight", &[]).await.expect(Exit::Failed);
    net(&world, 0, |n| n.checks.push(check("net.bad", State::Failed, Severity::Error)));
    let ran = world.run_with(&["network", "preflight", "--host", "pve1"], None, |io| io.colour = true).await.expect(Exit::Critical);
    let (bad, warn) = (ran.out.find("net.bad").unwrap(), ran.out.find("net.warn").unwrap());
    assert!(bad < warn && ran.out.contains("\u{1b}[31mnet.bad") && ran.out.contains("\u{1b}[33mnet.warn"), "{:?}", ran.out);
    let json = on(&world, "preflight", &["-o", "json"]).await.expect(Exit::Critical).json();
    assert_eq!((&json["hosts"][0]["checks"][0]["id"], &json["hosts"][0]["checks"][0]["severity"]), (&"net.bad".into(), &"error".into()));
    world.add_dead().await;
    world.run(&["network", "preflight", "--host", "pve2", "--host", "dead"]).await.expect(Exit::Partial);
    let path = file(&world, FILE);
    on(&world, "preflight", &["-f", &path]).await.expect(Exit::Critical);
}

#[tokio::test]
async fn show_lists_links_routes_and_networks() {
    let world = world().await;
    let link = |name: &str, kind: &str| v1::Link {
        name: name.into(),
        kind: kind.into(),
        up: true,
        carrier: true,
        mtu: 1500,
        ..v1::Link::default()
    };
    let eth0 = v1::Link {
        management: vec!["default route".into()],
        declared_in: vec!["/etc/network/interfaces:3".into()],
        ..link("eth0", "ether")
    };
    let vlan = v1::Link {
        parent: "eth1".into(),
        vlan_id: 100,
        addresses: vec!["192.0.2.1/24".into()],
        network: "storage".into(),
        ..link("eth1.100", "vlan")
    };
    net(&world, 0, |n| {
        n.links = vec![eth0, v1::Link { carrier: false, ..link("eth1", "ether") }, vlan];
        n.routes = vec![v1::Route { destination: "default".into(), gateway: "10.0.0.1".into(), link: "eth0".into(), metric: 0, family: 4 }];
        n.pending = vec![v1::PendingNetworkChange { kind: "interfaces.new".into(), detail: "staged by root".into() }];
    });
    on(&world, "apply", &[&VLAN[..], &["--yes"]].concat()).await.expect(Exit::Ok);
    let ran = on(&world, "show", &[]).await.expect(Exit::Ok);
    for want in [
        "pve1  eth0      ether  up          1500  -     -      -             -        not touched: default route; in /etc/network/interfaces:3\n",
        "pve1  eth1      ether  no carrier  1500",
        "pve1  eth1.100  vlan   up          1500  eth1  100    192.0.2.1/24  storage  -\n",
        "pve1  default (IPv4)  10.0.0.1  eth0  0\n",
        "pve1  storage  default  eth1.100    yes      -    -\n",
        "pve1: waits: interfaces.new: staged by root\n",
    ] {
        assert!(ran.out.contains(want), "{want}\n{}", ran.out);
    }
    let ran = on(&world, "show", &["--network", "storage"]).await.expect(Exit::Ok);
    assert!(ran.out.contains("eth1.100") && ran.out.contains("eth1 ") && !ran.out.contains("eth0"), "{}", ran.out);
    let json = world.run(&["net", "show", "-o", "json"]).await.expect(Exit::Ok).json();
    assert_eq!((&json["hosts"][0]["links"][2]["vlan_id"], &json["hosts"][1]["host"]), (&100.into(), &"pve2".into()));
}

#[tokio::test]
async fn a_probe_tells_how_far_frames_get_and_who_has_an_address() {
    let world = world().await;
    let probe = |more: &'static [&'static str]| [&["network", "probe", "--interface", "vmbr1", "--from", "pve2"], more].concat();
    let ran = world.run(&probe(&["--to", "pve1", "--vlan", "100"])).await.expect(Exit::Ok);
    assert_eq!(ran.out, "vmbr1 VLAN 100 from pve2 to pve1: gets through up to MTU 1500, in 250 µs\n");
    net(&world, 0, |n| n.path_mtu = 1280);
    let ran = world.run(&probe(&["--to", "pve1"])).await.expect(Exit::Failed);
    assert!(ran.out.contains("MTU 1500 do not get through, only up to 1280"), "{}", ran.out);
    net(&world, 0, |n| n.deaf = true);
    let json = world.run(&probe(&["--to", "pve1", "-o", "json"])).await.expect(Exit::Failed).json();
    assert!(json["reached"]["problem"].as_str().unwrap().starts_with("no answer came"), "{json}");
    world.run(&probe(&["--to", "pve2"])).await.expect(Exit::Usage);
    world.run(&probe(&["--to", "pve9"])).await.expect(Exit::NotFound);

    let ran = world.run(&probe(&["--addresses", "192.0.2.10-192.0.2.20,2001:db8::5"])).await.expect(Exit::Ok);
    assert_eq!(ran.out, "vmbr1 on pve2: nobody answers for any of 12 addresses\n");
    net(&world, 1, |n| drop(n.holders.insert("192.0.2.15".into(), "02:00:00:00:00:0f".into())));
    let ran = world.run(&probe(&["--addresses", "192.0.2.10-192.0.2.20"])).await.expect(Exit::Failed);
    assert_eq!(ran.out, "ADDRESS     USED BY\n192.0.2.15  02:00:00:00:00:0f\n");
    world.run(&probe(&["--addresses", "192.0.2.20-192.0.2.10"])).await.expect(Exit::Usage);
    world.run(&probe(&[])).await.expect(Exit::Usage);
}

#[tokio::test]
async fn the_latch_is_told_and_cleared_when_a_person_says_so() {
    let world = world().await;
    let ran = world.run_with(&["network", "clear", "--host", "pve1"], Some("y\n"), |_| {}).await.expect(Exit::NotFound);
    assert!(ran.err.contains("pve1 is not latched"), "{}", ran.err);
    net(&world, 0, |n| (n.bad, n.stuck) = (true, true));
    on(&world, "apply", &[&VLAN[..], &["--yes"]].concat()).await.expect(Exit::Failed);
    let ran = on(&world, "status", &[]).await.expect(Exit::Ok);
    assert!(
        ran.out.contains("rollback failed") && ran.out.contains("put the network right by hand, then pveletctl network clear"),
        "{}",
        ran.out
    );
    let ran = on(&world, "apply", &[&VLAN[..], &["--yes"]].concat()).await.expect(Exit::Failed);
    assert!(ran.err.contains("NETWORK_LATCHED"), "{}", ran.err);
    on(&world, "clear", &[]).await.expect(Exit::Usage);
    world.run_with(&["network", "clear", "--host", "pve1"], Some("n\n"), |_| {}).await.expect(Exit::Failed);
    assert!(net(&world, 0, |n| n.latched));
    let ran = on(&world, "clear", &["--yes"]).await.expect(Exit::Ok);
    assert_eq!(ran.out, "pve1: cleared; changes are made again\n");
    assert!(!net(&world, 0, |n| n.latched));
}
