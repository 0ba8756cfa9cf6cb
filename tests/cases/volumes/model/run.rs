//! Steps, made: by the agent, which may be killed meanwhile, and by others who ask PVE itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use pvelet_agent::crash::NAMES;
use pvelet_proto::v1;
use pvelet_tests::{
    Client, Stack,
    agent::SOON,
    calls::{Refusal, succeeded},
    client::operation_reason,
    rng::Rng,
    volumes::{Done, MIB, fill, volume_ref},
};
use tonic::{Code, Status};

use super::{
    check::{Baseline, Seen},
    steps::Step,
    world::{VMS, Volume, World},
};

/// Points that operations on volumes pass whatever they do.
const EVERYWHERE: [&str; 3] = ["volume.intent_written", "volume.before_end", "volume.end_written"];

/// What happens during a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meanwhile {
    /// The agent ends at a named point; when it is started again, perhaps at another one, which it comes to while it goes on.
    DiesAt(&'static str, Option<&'static str>),
    /// It ends this long after it was asked, or when it has answered.
    DiesAfter(Duration),
    /// Somebody gives this VM so many cores.
    Cores(u32, u32),
}

impl Meanwhile {
    /// Something for a step that is to succeed; `None`: nothing.
    pub(super) fn draw(rng: &mut Rng, step: &Step, world: &World) -> Option<Self> {
        let points = step.points()?;
        match rng.below(100) {
            0..50 => return None,
            50..60 => return Some(Self::Cores(rng.pick(&VMS), u32::try_from(rng.between(1, 4)).expect("few"))),
            60..70 => return Some(Self::DiesAfter(Duration::from_micros(rng.below(60_000)))),
            _ => {}
        }
        let power = matches!(step, Step::Start { .. } | Step::Stop { .. });
        let general = |name: &&str| !power && EVERYWHERE.contains(name);
        // A move passes others where PVE makes it.
        let by_pve = matches!(step, Step::Move { id, .. } if world.volumes.get(id).is_some_and(|v| v.at.is_some()));
        let moved_by_pve = ["move_volume.called", "move_volume.task_ended", "move_volume.new_labelled"];
        let comes_by = |name: &&str| !name.starts_with("move_volume.") || moved_by_pve.contains(name) == by_pve;
        let named: Vec<&str> =
            NAMES.iter().filter(|n| general(n) || points.iter().any(|p| n.starts_with(p))).filter(|n| comes_by(n)).copied().collect();
        let first = rng.pick(&named);
        Some(Self::DiesAt(first, rng.chance(20).then(|| rng.pick(&named))))
    }
}

/// The tenants' owners' cluster of all volumes that a sequence makes.
pub(super) const CLUSTER: &str = "model";

/// What a volume is for, in its label.
pub(super) fn claim(id: &str) -> String {
    format!("shop/{}", &id[..8])
}

/// What has been made.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) sequences: usize,
    pub(super) steps: u64,
    pub(super) refused: u64,
    pub(super) kills: u64,
    /// Steps of which nothing was done when the agent had been killed, and that were made again.
    pub(super) again: u64,
    /// Named points at which the agent has died.
    pub(super) points: BTreeSet<&'static str>,
}

impl Sums {
    pub(super) fn add(&mut self, other: Self) {
        self.sequences += other.sequences;
        self.steps += other.steps;
        self.refused += other.refused;
        self.kills += other.kills;
        self.again += other.again;
        self.points.extend(other.points);
    }
}

/// One stack with the model of what is true there.
pub(super) struct Run {
    pub(super) stack: Stack,
    pub(super) client: Client,
    pub(super) vms: BTreeMap<u32, v1::VmRef>,
    pub(super) world: World,
    pub(super) baseline: Baseline,
    pub(super) sums: Sums,
    request: u64,
}

/// Asks the agent to do a step.
async fn call(client: Client, vms: BTreeMap<u32, v1::VmRef>, request_id: String, step: Step) -> Done {
    let (c, r) = (&client, request_id.as_str());
    match &step {
        Step::Create { id, storage, format, mib, from } => {
            use v1::create_volume_request::Source;
            let source = from.as_ref().map(|(source, snapshot)| match snapshot {
                None => Source::Volume(volume_ref(source).expect("a reference")),
                Some(name) => Source::Snapshot(v1::SnapshotSource { volume: volume_ref(source), name: name.clone() }),
            });
            let owner = Some(v1::VolumeOwner { tenant: String::new(), cluster: CLUSTER.into(), claim: claim(id) });
            let request = c.volume_request(r, id, storage, mib * MIB);
            c.create_volume(v1::CreateVolumeRequest { owner, source, format: (*format).into(), ..request }).await
        }
        Step::Attach { id, vmid } => c.attach_volume(r, id, &vms[vmid]).await,
        Step::Detach { id, vmid } => c.detach_volume(r, id, &vms[vmid]).await,
        Step::Grow { id, mib } => c.grow_volume(r, id, mib * MIB).await,
        Step::Limit { id, limits: (iops_write, mbps_read) } => {
            let limits = v1::DiskLimits { iops_write: *iops_write, mbps_read: *mbps_read, ..v1::DiskLimits::default() };
            c.limit_volume(r, id, limits).await
        }
        Step::Snapshot { id, name } => c.snapshot_volume(r, id, name).await,
        Step::DropSnapshot { id, name } => c.delete_volume_snapshot(r, id, name).await,
        Step::RollBack { id, name } => c.roll_back_volume(r, id, name).await,
        Step::Move { id, storage, format } => c.move_volume(r, id, storage, format).await,
        Step::HandOver { id, vmid, to_vm } => {
            let name = if *to_vm { v1::VolumeName::Vm } else { v1::VolumeName::Reserved };
            c.hand_over_volume(r, id, &vms[vmid], name).await
        }
        Step::Delete { id } => c.delete_volume(r, id).await,
        Step::Start { vmid } => c.start(r, &vms[vmid]).await,
        Step::Stop { vmid } => c.stop(r, &vms[vmid]).await,
        Step::Write { .. } | Step::OwnDisk { .. } | Step::OwnDiskGone { .. } | Step::Cores { .. } | Step::TakenOut { .. } => {
            panic!("{step:?} is nothing that the agent does")
        }
    }
}

/// Whether the agent ended while it was asked; in the middle of its answer that is Unknown to the client.
fn is_cut_off(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown)
}

impl Run {
    pub(super) fn new(stack: Stack, client: Client, vms: BTreeMap<u32, v1::VmRef>, world: World, baseline: Baseline) -> Self {
        Self { stack, client, vms, world, baseline, sums: Sums::default(), request: 0 }
    }

    fn request_id(&mut self) -> String {
        self.request += 1;
        format!("r{}", self.request)
    }

    async fn ask(&self, request_id: &str, step: &Step) -> Done {
        call(self.client.clone(), self.vms.clone(), request_id.to_owned(), step.clone()).await
    }

    /// Makes a step, and compares what came of it with what had to.
    pub(super) async fn step(&mut self, step: &Step, meanwhile: Option<Meanwhile>) {
        self.sums.steps += 1;
        if step.points().is_none() {
            self.by_others(step);
            self.seen_by_agent().await;
        } else {
            let verdict = self.world.judge(step);
            match meanwhile {
                _ if !verdict.reasons.is_empty() => {
                    let request_id = self.request_id();
                    let answer = self.ask(&request_id, step).await;
                    let well = answer.as_ref().is_ok_and(|op| op.state() == v1::OperationState::Succeeded);
                    if !(well && verdict.already) {
                        self.sums.refused += 1;
                        let refused = Refusal::of(answer);
                        assert!(verdict.reasons.contains(&refused.reason.as_str()), "{step:?}: {verdict:?}, yet {refused:?}");
                    }
                }
                None => {
                    let request_id = self.request_id();
                    succeeded(self.ask(&request_id, step).await);
                    self.world.apply(step);
                }
                Some(Meanwhile::Cores(vmid, cores)) => self.beside(step, vmid, cores).await,
                Some(kill) => self.killed(step, kill).await,
            }
        }
        self.compare(|id| step.volume().is_some_and(|v| v == id)).await;
    }

    /// Makes a step during which the agent ends: it is done, or not at all; then it is made again.
    async fn killed(&mut self, step: &Step, kill: Meanwhile) {
        let request_id = self.request_id();
        let answer = match kill {
            Meanwhile::DiesAt(point, _) => self.dies_at(point, &request_id, step).await,
            Meanwhile::DiesAfter(time) => self.dies_after(time, &request_id, step).await,
            Meanwhile::Cores(..) => panic!("nothing dies of that"),
        };
        self.sums.kills += 1;
        self.time_passes();
        if let Meanwhile::DiesAt(_, Some(point)) = kill {
            self.dies_again(point, &request_id).await;
        }
        self.stack.agent("pve1").start_with(&[]).expect("the agent starts");
        self.client = self.stack.operator("pve1");
        let end = match self.client.operation(&request_id).await {
            Some(_) => Some(self.client.operation_end(&request_id).await),
            None => None,
        };
        match end {
            Some(op) if op.state() == v1::OperationState::Succeeded => {}
            other => {
                let none = other.as_ref().is_none_or(|op| operation_reason(op) == "AGENT_RESTARTED");
                assert!(none, "{step:?}, {kill:?}: neither done nor undone: {other:?}");
                assert!(answer.is_none(), "{step:?}, {kill:?}: it was done, and now it is {other:?}");
                // Nothing of it was done.
                self.sums.again += 1;
                self.compare(|id| step.volume().is_some_and(|v| v == id)).await;
                let again = self.request_id();
                succeeded(self.ask(&again, step).await);
            }
        }
        self.world.apply(step);
    }

    /// Makes a step while somebody changes a VM: both are done.
    async fn beside(&mut self, step: &Step, vmid: u32, cores: u32) {
        let request_id = self.request_id();
        let pve = self.stack.pve("pve1");
        let other = tokio::task::spawn_blocking(move || pve.task("POST", &format!("/qemu/{vmid}/config"), &format!("cores={cores}")));
        succeeded(self.ask(&request_id, step).await);
        assert_eq!(other.await.expect("PVE answers"), "TASK OK", "{step:?}");
        self.world.apply(step);
        self.world.apply(&Step::Cores { vmid, cores });
    }

    /// Starts the agent, which may end again while it goes on with what it was at.
    async fn dies_again(&mut self, point: &str, request_id: &str) {
        self.sums.kills += 1;
        if self.stack.agent("pve1").start_with(&[("PVELET_CRASH_AT", point)]).is_ok() {
            let client = self.stack.operator("pve1");
            let request = v1::WatchOperationsRequest { tenant: client.tenant.clone(), since_revision: 0 };
            if let Ok(stream) = client.agent.operation().watch_operations(request).await
                && Self::goes_on(&client, request_id).await
            {
                let mut stream = stream.into_inner();
                while let Ok(Some(message)) = stream.message().await {
                    if message.operation.is_some_and(|op| op.request_id == request_id && op.end_time.is_some()) {
                        break;
                    }
                }
            }
            self.stack.agent("pve1").kill();
        }
        self.time_passes();
    }

    async fn goes_on(client: &Client, request_id: &str) -> bool {
        let (tenant, request_id) = (client.tenant.clone(), request_id.to_owned());
        let list = v1::ListOperationsRequest { tenant, request_id, ..v1::ListOperationsRequest::default() };
        let known = client.agent.operation().list_operations(list).await;
        known.is_ok_and(|found| found.into_inner().operations.iter().any(|op| op.end_time.is_none()))
    }

    async fn dies_at(&mut self, point: &'static str, request_id: &str, step: &Step) -> Option<v1::Operation> {
        self.stack.agent("pve1").kill();
        self.stack.agent("pve1").start_with(&[("PVELET_CRASH_AT", point)]).expect("the agent starts");
        self.client = self.stack.operator("pve1");
        match self.ask(request_id, step).await {
            Ok(op) => {
                // It did not come by that point, or gave its answer before.
                self.stack.agent("pve1").kill();
                Some(succeeded(Ok(op)))
            }
            Err(status) => {
                assert!(is_cut_off(&status), "{step:?}, {point}: {status:?}");
                let status = self.stack.agent("pve1").wait_exit();
                assert_eq!(status.signal(), Some(9), "{step:?}, {point}: {status}");
                self.sums.points.insert(point);
                None
            }
        }
    }

    async fn dies_after(&mut self, time: Duration, request_id: &str, step: &Step) -> Option<v1::Operation> {
        let asked = tokio::spawn(call(self.client.clone(), self.vms.clone(), request_id.to_owned(), step.clone()));
        tokio::pin!(asked);
        let early = tokio::time::timeout(time, &mut asked).await;
        self.stack.agent("pve1").kill();
        let answer = match early {
            Ok(answer) => answer,
            Err(_) => asked.await,
        };
        match answer.expect("the call ends") {
            Ok(op) => Some(succeeded(Ok(op))),
            Err(status) => {
                assert!(is_cut_off(&status), "{step:?}, {time:?}: {status:?}");
                None
            }
        }
    }

    /// A lock of the PVE cluster that a killed agent held is free after 120 s.
    fn time_passes(&self) {
        let locks = self.stack.sim.node("pve1").etc_pve().join("priv/lock");
        for lock in std::fs::read_dir(locks).expect("locks").flatten() {
            if lock.file_name().to_string_lossy().starts_with("pvelet-") {
                std::fs::remove_dir(lock.path()).expect("a lock");
            }
        }
    }

    /// What others do the agent sees a moment later.
    async fn seen_by_agent(&self) {
        let end = Instant::now() + SOON;
        loop {
            let told = self.client.volumes().await;
            let at = |id: &String| {
                let there = told.iter().find(|v| v.id == *id).and_then(|v| v.attachment.as_ref());
                there.map(|at| (at.vm.as_ref().map_or(0, |vm| vm.vmid), at.slot.starts_with("unused")))
            };
            let wanted = |v: &Volume| v.at.map(|(vmid, _)| (vmid, false)).or(v.aside.map(|vmid| (vmid, true)));
            let stale = self.world.volumes.iter().find(|(id, volume)| at(id) != wanted(volume));
            match stale {
                None => return,
                Some((id, _)) => assert!(Instant::now() < end, "the agent does not see what became of {id}: {told:?}"),
            }
        }
    }

    /// What others do, behind the agent's back.
    fn by_others(&mut self, step: &Step) {
        let pve = self.stack.pve("pve1");
        let config = |vmid: &u32, form: &str| {
            let end = pve.task("POST", &format!("/qemu/{vmid}/config"), form);
            assert_eq!(end, "TASK OK", "{step:?}");
        };
        match step {
            Step::Write { id, seed, mib } => {
                let seen = Seen::look(&self.stack, &self.world, &self.baseline);
                let volid = &seen.volids[id];
                fill(&seen.files[volid], self.world.volume(id).format, *seed, usize::try_from(*mib).expect("few"));
            }
            // 2 MiB, in GiB as PVE has it.
            Step::OwnDisk { vmid, slot } => config(vmid, &format!("scsi{slot}=rawdir:0.001953125")),
            Step::OwnDiskGone { vmid, slot } => {
                config(vmid, &format!("delete=scsi{slot}"));
                let unused = Seen::unused_slot(&self.stack, *vmid, &self.world.vms[vmid].own[slot]);
                config(vmid, &format!("delete={unused}"));
            }
            Step::TakenOut { id } => {
                let (vmid, slot) = self.world.volume(id).at.expect("a slot");
                config(&vmid, &format!("delete=scsi{slot}"));
            }
            Step::Cores { vmid, cores } => config(vmid, &format!("cores={cores}")),
            other => panic!("{other:?} is the agent's to do"),
        }
        self.world.apply(step);
        if let Step::OwnDisk { vmid, slot } = step {
            let volid = Seen::own_disk(&self.stack, *vmid, *slot);
            self.world.vms.get_mut(vmid).expect("a VM").own.insert(*slot, volid);
        }
    }
}
