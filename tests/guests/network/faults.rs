//! What goes wrong around a change: tools that fail or hang, people, disks, and changes that cut the host off.

use std::time::Duration;

use pvelet_proto::{identity::Role, reason, v1};
use pvelet_tests::{calls::Refusal, client::operation_reason};
use tonic::Code;

use crate::{
    drive::{Drive, Wish, ended, look, told, waiting},
    host::SOON,
    kinds::ping,
    lane::{Case, Lane, succeeded},
    networks::{SUBJECT, State, TRUNK, network, vlan, with},
};

/// The shortest time to confirm.
const SHORT: Duration = Duration::from_secs(10);
/// The state of the last change.
const CHECKPOINT: &str = "/var/lib/pvelet/network/checkpoint.json";

pub fn cases(full: bool) -> Vec<Case> {
    let changed = |name: &str, fault: &str, run: fn(&mut Lane<'_>) -> State| Case { run: Box::new(run), ..Case::new(name, fault, |_| ()) };
    let mut all = vec![
        Case::new("add", "ifup fails", ifup_fails),
        changed("add", "SIGKILL while ifup runs", killed_while_ifup_runs),
        changed("add", "power cut while ifup runs", cut_while_ifup_runs),
        Case::new("add", "the controller vanishes", controller_vanishes),
        Case::new("add", "no space for the checkpoint", no_space),
        changed("add", "the disk is full when undone", full_when_undone),
        Case::new("add", "two at once", two_at_once),
        Case::new("add", "an edit meanwhile", edit_meanwhile),
        Case::new("add", "PVE's staged edit", staged_edit),
        Case::new("add", "PVE's lock is held", lock_held),
        Case::new("add", "confirmed over the old connection", old_connection),
        Case::new("the management path", "cut: refused", management_refused),
        Case::new("the management path", "cut by force", management_forced),
        Case { latched: true, ..Case::new("add", "restoring fails", restoring_fails) },
    ];
    // They take a minute and more each.
    if full {
        all.extend([
            Case::new("add", "ifup hangs", ifup_hangs),
            Case::new("add", "controller and agent vanish", both_vanish),
            Case::new("add", "an ifreload meanwhile", ifreload_meanwhile),
            Case::new("add", "rolled back twice", rolled_back_twice),
            changed("add", "no /etc/pve at boot", no_pve_at_boot),
            Case::new("add", "the gateway stops answering", gateway_lost),
        ]);
    }
    all
}

fn first(lane: &Lane<'_>) -> Wish {
    lane.wish(State::First)
}

fn rolled_back(lane: &Lane<'_>, result: Result<v1::Operation, tonic::Status>, what: &str) -> v1::Operation {
    let text = told(&result);
    let op = result.unwrap_or_else(|_| panic!("{what}: {text}\n{}", lane.host.log()));
    assert_eq!(operation_reason(&op), reason::NETWORK_ROLLED_BACK, "{what}: {text}");
    op
}

/// A script that ifupdown2 runs for one interface.
fn hook(lane: &Lane<'_>, interface: &str, body: &str) {
    lane.host.guest.sh(&format!(
        "printf '#!/bin/sh\\n[ \"$IFACE\" = {interface} ] || exit 0\\n{body}\\n' >/usr/lib/pvelet/hook; chmod 755 /usr/lib/pvelet/hook; \
         mkdir -p /etc/network/if-pre-up.d; ln -sf /usr/lib/pvelet/hook /etc/network/if-pre-up.d/hook"
    ));
}

fn unhook(lane: &Lane<'_>) {
    lane.host.guest.sh("rm -f /etc/network/if-pre-up.d/hook");
}

/// The second interface of the change never comes up.
fn ifup_fails(lane: &mut Lane<'_>) {
    // ifupdown2 goes on after a failed script; so the script also takes away what the interface needs.
    hook(lane, "vmbr100", "ip link del bond0.100; exit 1");
    let result = lane.wait(Drive::new(lane.host.api()).carry(&first(lane)));
    unhook(lane);
    rolled_back(lane, result, "ifup fails");
}

fn ifup_hangs(lane: &mut Lane<'_>) {
    hook(lane, "vmbr100", "exec sleep 100000");
    let drive = Drive::new(lane.host.api());
    let result = lane.wait(drive.carry(&first(lane)));
    unhook(lane);
    rolled_back(lane, result, "ifup hangs");
    let left = lane.host.guest.run("pgrep -f 'sleep 100000'");
    assert_ne!(left.status, 0, "what hung is still there: {}", left.stdout);
}

/// Begins the addition, and waits until ifup has come to the bridge, where it stays.
fn until_ifup_runs(lane: &mut Lane<'_>) -> Drive {
    hook(lane, "vmbr100", "echo pvelet-hook-reached >/dev/console; exec sleep 100000");
    let drive = Drive::new(lane.host.api());
    lane.wait(async { drive.begin(&drive.api.fresh(), &first(lane)).await }).unwrap();
    lane.host.guest.wait_console("pvelet-hook-reached", SOON).unwrap();
    unhook(lane);
    drive
}

fn end_of(lane: &Lane<'_>, drive: &Drive) -> State {
    lane.host.start_agent();
    let result = lane.wait(drive.finish());
    let text = told(&result);
    let op = result.unwrap_or_else(|_| panic!("{text}\n{}", lane.host.log()));
    if op.state() == v1::OperationState::Succeeded { State::First } else { State::Bare }
}

fn killed_while_ifup_runs(lane: &mut Lane<'_>) -> State {
    let drive = until_ifup_runs(lane);
    lane.host.kill_agent();
    end_of(lane, &drive)
}

fn cut_while_ifup_runs(lane: &mut Lane<'_>) -> State {
    let drive = until_ifup_runs(lane);
    lane.host.guest.sh("sync -f /etc/network");
    lane.host.guest.power_cut();
    lane.host.guest.start().unwrap();
    end_of(lane, &drive)
}

fn controller_vanishes(lane: &mut Lane<'_>) {
    let drive = Drive::new(lane.host.api()).within(SHORT);
    let op = lane.applied(&drive, &first(lane));
    let result = lane.wait(async { drive.until(&drive.api.fresh(), ended).await });
    rolled_back(lane, result, "nobody confirms");
    let late = lane.wait(drive.confirm(&op.name)).unwrap_err();
    assert_eq!(pvelet_tests::client::reason(&late), reason::NETWORK_NOT_WAITING, "{late:?}");
}

/// Nobody is left but systemd's timer.
fn both_vanish(lane: &mut Lane<'_>) {
    let drive = Drive::new(lane.host.api()).within(SHORT);
    lane.applied(&drive, &first(lane));
    lane.host.kill_agent();
    lane.host.wait_until(&format!("grep -q rolled_back {CHECKPOINT}"));
    lane.must_be_bare("the timer has undone it");
    lane.host.start_agent();
    let result = lane.wait(async { drive.until(&drive.api.fresh(), ended).await });
    rolled_back(lane, result, "the timer undoes it");
    let change = lane.wait(look(lane.host.api(), true)).unwrap().last_change.unwrap();
    assert_eq!(change.undone_by, "timer", "{change:?}");
}

fn no_space(lane: &mut Lane<'_>) {
    lane.host.guest.sh("mkdir -p /var/lib/pvelet/network; mount -t tmpfs -o size=16k tmpfs /var/lib/pvelet/network; cat /dev/zero >/var/lib/pvelet/network/full || true");
    let result = lane.wait(Drive::new(lane.host.api()).carry(&first(lane)));
    lane.host.guest.sh("umount /var/lib/pvelet/network");
    assert!(result.as_ref().map_or(true, |op| op.state() == v1::OperationState::Failed), "{}", told(&result));
}

/// The whole disk fills up while a change waits. It may be told later, but it must be undone.
fn full_when_undone(lane: &mut Lane<'_>) -> State {
    let drive = Drive::new(lane.host.api());
    let op = lane.applied(&drive, &first(lane));
    lane.host.guest.sh(
        "fallocate --length=$(df --output=avail --block-size=1 / | tail -n 1) /var/full || true; cat /dev/zero >/var/fuller || true; sync",
    );
    let rolled = lane.wait(async { drive.roll_back(&drive.api.fresh(), &op.name).await });
    lane.host.guest.sh("rm -f /var/full /var/fuller; sync");
    lane.host.restart_agent();
    let result = lane.wait(async { drive.until(&drive.api.fresh(), ended).await });
    let op = result.unwrap_or_else(|s| panic!("{s}: {rolled:?}"));
    assert_ne!(op.state(), v1::OperationState::Succeeded, "{rolled:?} {op:?}");
    State::Bare
}

fn two_at_once(lane: &mut Lane<'_>) {
    let (one, two) = (Drive::new(lane.host.api()), Drive::new(lane.host.api()));
    let op = lane.applied(&one, &first(lane));
    let other = Wish::Apply(network("other", vec![vlan("bond0.7", TRUNK, 7)]));
    Refusal::of(lane.wait(two.applied(&other))).is(Code::Aborted, reason::OPERATION_IN_PROGRESS, "a second change");
    lane.wait(one.confirm(&op.name)).unwrap();
    succeeded(lane.wait(async { one.until(&one.api.fresh(), ended).await }));
    lane.change(&Wish::Remove(SUBJECT.into()));
}

/// Somebody edits the agent's own file while a change waits: it is still undone, and nothing of the edit stays.
fn edit_meanwhile(lane: &mut Lane<'_>) {
    let drive = Drive::new(lane.host.api());
    let op = lane.applied(&drive, &first(lane));
    lane.host.guest.sh("printf '\\n# an administrator was here\\n' >>/etc/network/interfaces.d/pvelet; cp -a /etc/network/interfaces /root/interfaces; printf '\\n# here too\\n' >>/etc/network/interfaces");
    let result = lane.wait(async {
        let client = drive.api.fresh();
        drive.roll_back(&client, &op.name).await?;
        drive.until(&client, ended).await
    });
    rolled_back(lane, result, "edited meanwhile");
    // What stands in somebody else's file is theirs.
    assert!(lane.host.guest.sh("cat /etc/network/interfaces").contains("here too"));
    lane.host.guest.sh("mv /root/interfaces /etc/network/interfaces");
}

/// Somebody applies everything while a change waits, as PVE's web interface does. The change goes on.
fn ifreload_meanwhile(lane: &mut Lane<'_>) {
    let drive = Drive::new(lane.host.api());
    let op = lane.applied(&drive, &first(lane));
    // With the host as it is on Debian 13 it always ends with 1: it misses a folder of iproute2 that only ifupdown2 knows.
    lane.host.guest.run("ifreload -a");
    lane.wait(drive.confirm(&op.name)).unwrap();
    succeeded(lane.wait(async { drive.until(&drive.api.fresh(), ended).await }));
    lane.change(&Wish::Remove(SUBJECT.into()));
}

fn staged_edit(lane: &mut Lane<'_>) {
    lane.host
        .guest
        .sh("{ cat /etc/network/interfaces; printf 'auto vmbr9\\niface vmbr9\\n    bridge-ports none\\n'; } >/etc/network/interfaces.new");
    let refusal = Refusal::of(lane.wait(Drive::new(lane.host.api()).applied(&first(lane))));
    refusal.is(Code::FailedPrecondition, reason::FOREIGN_CHANGE_PENDING, "a staged edit");
    assert!(refusal.text.contains("interfaces.new"), "{refusal:?}");
    lane.host.guest.sh("rm /etc/network/interfaces.new");
}

fn lock_held(lane: &mut Lane<'_>) {
    let mut holder = lane
        .host
        .guest
        .spawn("exec flock /etc/network/.pve-interfaces.lock sh -c 'echo pvelet-lock-held >/dev/console; exec sleep 100000'")
        .unwrap();
    lane.host.guest.wait_console("pvelet-lock-held", SOON).unwrap();
    let refusal = Refusal::of(lane.wait(Drive::new(lane.host.api()).carry(&first(lane))));
    lane.host.guest.sh("pkill -f 'sleep 100000'");
    let _ = holder.wait();
    refusal.is(Code::Aborted, reason::LOCK_TIMEOUT, "PVE's lock");
}

fn rolled_back_twice(lane: &mut Lane<'_>) {
    let drive = Drive::new(lane.host.api());
    let result = lane.wait(drive.carry_back(&first(lane)));
    let op = rolled_back(lane, result, "asked for");
    let again = lane.wait(async { drive.roll_back(&drive.api.fresh(), &op.name).await }).unwrap();
    assert_eq!(again.state(), v1::NetworkChangeState::RolledBack, "{again:?}");
}

/// Only a connection that was opened after the change proves that one can be.
fn old_connection(lane: &mut Lane<'_>) {
    let drive = Drive::new(lane.host.api());
    let client = lane.client();
    let op = lane.wait(async {
        drive.begin(&client, &first(lane)).await?;
        drive.until(&client, waiting).await
    });
    let op = op.unwrap();
    let request = v1::ConfirmNetworkRequest { meta: client.meta_at_once("stale"), operation: op.name.clone() };
    let stale = lane.wait(client.agent.network().confirm_network(request)).unwrap_err();
    assert_eq!(pvelet_tests::client::reason(&stale), reason::STALE_CONNECTION, "{stale:?}");
    let result = lane.wait(async {
        drive.roll_back(&client, &op.name).await?;
        drive.until(&client, ended).await
    });
    rolled_back(lane, result, "not confirmed");
}

/// PVE's cluster file system does not come up: the host's network is put right all the same.
fn no_pve_at_boot(lane: &mut Lane<'_>) -> State {
    let drive = Drive::new(lane.host.api());
    lane.applied(&drive, &first(lane));
    lane.host.guest.sh("systemctl --quiet disable pve-sim.service; sync");
    lane.host.guest.power_cut();
    lane.host.guest.start().unwrap();
    lane.host.guest.sh("systemctl start networking.service");
    lane.must_be_bare("undone at boot without /etc/pve");
    lane.host.guest.sh("systemctl --quiet enable --now pve-sim.service; systemctl restart pvelet-agent.service; sync");
    end_of(lane, &drive)
}

/// Where the agent listens from now on, and the peer goes to.
fn listen(lane: &Lane<'_>, address: &str) {
    let n = lane.host.n;
    lane.host.guest.sh(&format!("sed -i 's/^listen .*/listen = \"{address}:7443\"/' /etc/pvelet/agent.toml.in"));
    lane.host.restart_agent();
    lane.way_in.shell.sh(&format!(
        "mkdir -p /run/systemd/system/to-pve{n}.service.d; systemctl stop to-pve{n}.service; \
         printf '[Service]\nExecStart=\nExecStart=/lib/systemd/systemd-socket-proxyd {address}:7443\n' >/run/systemd/system/to-pve{n}.service.d/to.conf; \
         systemctl daemon-reload"
    ));
}

/// The agent is reached over a VLAN that it has made itself. An interface of somebody else is never touched anyway.
fn reached_over_own_vlan(lane: &Lane<'_>, trial: impl FnOnce()) {
    let n = lane.host.n;
    lane.change(&Wish::Apply(network("way", vec![with(vlan("bond0.60", TRUNK, 60), &[&format!("10.60.0.{n}/24")])])));
    listen(lane, &format!("10.60.0.{n}"));
    trial();
    listen(lane, &format!("192.0.2.{n}"));
    lane.change(&Wish::Remove("way".into()));
}

fn management_refused(lane: &mut Lane<'_>) {
    reached_over_own_vlan(lane, || {
        let refusal = Refusal::of(lane.wait(Drive::new(lane.host.api()).applied(&Wish::Remove("way".into()))));
        refusal.is(Code::FailedPrecondition, reason::MANAGEMENT_PATH, "the agent's own way");
        assert!(refusal.text.contains("bond0.60"), "{refusal:?}");
    });
}

/// Nothing looks wrong on the host; but no confirmation comes through.
fn management_forced(lane: &mut Lane<'_>) {
    let (n, peer) = (lane.host.n, &lane.way_in.shell);
    reached_over_own_vlan(lane, || {
        lane.host.arm("run", "PVELET_NETWORK_FORCE", "management");
        lane.host.restart_agent();
        lane.host.guest.sh(&format!("rm -f {CHECKPOINT}"));
        // Long enough for a look and a ping in between, in guests that are emulated.
        let drive = Drive::new(lane.host.api()).within(Duration::from_secs(60));
        lane.wait(async { drive.begin(&drive.api.fresh(), &Wish::Remove("way".into())).await }).unwrap();
        lane.host.wait_until(&format!("grep -q phase[^a-z]*waiting {CHECKPOINT}"));
        assert_ne!(peer.run(&format!("ping -q -c 1 -w 3 10.60.0.{n}")).status, 0, "the way to the agent was not cut");
        lane.host.wait_until(&format!("grep -q phase[^a-z]*rolled_back {CHECKPOINT}"));
        peer.sh(&ping(&format!("10.60.0.{n}")));
        let result = lane.wait(async { drive.until(&drive.api.fresh(), ended).await });
        rolled_back(lane, result, "the agent's own way was cut");
    });
}

/// The gateway answered before the change, and does not after it: that is seen before anybody is asked to confirm.
fn gateway_lost(lane: &mut Lane<'_>) {
    let gateway = format!("192.0.2.10{}/24 dev eth1", lane.host.n);
    hook(lane, "vmbr100", "echo pvelet-hook-reached >/dev/console; until [ -e /run/pvelet-go ]; do sleep 0.1; done");
    let drive = Drive::new(lane.host.api());
    lane.wait(async { drive.begin(&drive.api.fresh(), &first(lane)).await }).unwrap();
    lane.host.guest.wait_console("pvelet-hook-reached", SOON).unwrap();
    lane.way_in.shell.sh(&format!("ip address del {gateway}"));
    lane.host.guest.sh("touch /run/pvelet-go");
    let result = lane.wait(drive.finish());
    lane.way_in.shell.sh(&format!("ip address add {gateway}"));
    unhook(lane);
    lane.host.guest.sh("rm /run/pvelet-go");
    let text = rolled_back(lane, result, "the gateway is lost").error.unwrap_or_default().message;
    assert!(text.contains("gateway"), "{text}");
}

/// The own file cannot be put back. Nothing is changed any more until a person has looked; the agent says so.
fn restoring_fails(lane: &mut Lane<'_>) {
    let drive = Drive::new(lane.host.api());
    let op = lane.applied(&drive, &first(lane));
    lane.host.guest.sh("chattr +i /etc/network/interfaces.d /etc/network/interfaces.d/pvelet");
    let result = lane.wait(async {
        let client = drive.api.fresh();
        let _ = drive.roll_back(&client, &op.name).await;
        drive.until(&client, ended).await
    });
    let op = result.unwrap();
    assert_eq!(operation_reason(&op), reason::NETWORK_ROLLBACK_FAILED, "{op:?}");
    let seen = lane.wait(look(lane.host.api(), true)).unwrap();
    assert!(seen.latched, "{:?}", seen.last_change);
    let next = Wish::Apply(network("other", vec![vlan("bond0.7", TRUNK, 7)]));
    Refusal::of(lane.wait(Drive::new(lane.host.api()).applied(&next))).is(Code::FailedPrecondition, reason::NETWORK_LATCHED, "latched");
    // It holds over a restart.
    lane.host.restart_agent();
    Refusal::of(lane.wait(Drive::new(lane.host.api()).applied(&next))).is(
        Code::FailedPrecondition,
        reason::NETWORK_LATCHED,
        "still latched",
    );
    // A person puts it right, and says so.
    lane.host.guest.sh("chattr -i /etc/network/interfaces.d /etc/network/interfaces.d/pvelet; ifdown vmbr100 bond0.100 || true; ip link del vmbr100 2>/dev/null || true; ip link del bond0.100 2>/dev/null || true; rm -f /etc/network/interfaces.d/pvelet");
    let admin = lane.host.api_as(lane.lab.pki.role(Role::Admin, &format!("person-{}", lane.host.n)), "default");
    let cleared = lane.wait(async {
        let client = admin.fresh();
        let meta = client.meta_at_once("clear");
        client.agent.network().clear_network(v1::ClearNetworkRequest { meta }).await
    });
    cleared.unwrap();
}
