//! Random sequences of steps on three VMs, with the agent killed at random points, against a model of what must be true.
//!
//! `PVELET_MODEL_SEED=<n>` runs that one sequence; `PVELET_MODEL_SEQUENCES=<n>` says how many are run else.

mod check;
mod run;
mod steps;
mod world;

use std::{
    collections::BTreeMap,
    fmt, panic,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use pve_sim::control::{Request, Seed};
use pvelet_tests::{
    Stack, StackOptions,
    rng::Rng,
    volumes::{MIB, fill, new_id, path_of},
};

use self::{
    check::{Baseline, Seen},
    run::{Meanwhile, Run, Sums},
    steps::Step,
    world::{VMS, Vm, World},
};
use super::seeded;

/// Sequences when nothing else is said, the fresh one included; `make test-volumes` and `make test-full` say 200.
const SEQUENCES: u64 = 60;
/// A disk of a VM's own that is there from the beginning.
const PLANTED_DISK: (u32, u32) = (102, 2);

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
    Some(parsed.unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

/// What is printed when a sequence fails.
struct Story<'a> {
    seed: u64,
    /// The next sequence; after a failure there is none.
    next: &'a AtomicU64,
    steps: Vec<(Step, Option<Meanwhile>)>,
}

impl fmt::Display for Story<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "--- sequence {:#x} ends so; again: PVELET_MODEL_SEED={:#x} cargo test ... --test volumes model",
            self.seed, self.seed
        )?;
        for (n, (step, meanwhile)) in self.steps.iter().enumerate() {
            let meanwhile = meanwhile.map(|m| format!("   meanwhile: {m:?}")).unwrap_or_default();
            writeln!(f, "{:3} {step:?}{meanwhile}", n + 1)?;
        }
        Ok(())
    }
}

impl Drop for Story<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.next.store(u64::MAX / 2, Ordering::Relaxed);
            eprintln!("{self}");
        }
    }
}

/// One node with three small stopped VMs, and what is somebody else's.
async fn stack() -> Run {
    let options = StackOptions { lock_factor: 0.2, start_agents: false, ..StackOptions::default() };
    let mut stack = Stack::seeded(options, |control| {
        for vmid in VMS {
            let seed = Seed { size_mib: 1, cloudinit: false, format: "raw".into(), ..Seed::new("pve1", vmid, &format!("vm-{vmid}")) };
            control.call(&Request::SeedVm(seed)).expect("a VM");
        }
    });
    // With a storage that cannot be asked, no volume would be proven gone.
    let layout = stack.sim.node("pve1");
    let storages = layout.etc_pve().join("storage.cfg");
    let text = std::fs::read_to_string(&storages).expect("storage.cfg");
    let kept: Vec<&str> = text.split("\n\n").filter(|s| !s.starts_with("dir: small\n") && !s.starts_with("dir: offline\n")).collect();
    std::fs::write(&storages, kept.join("\n\n")).expect("storage.cfg");
    stack.agent("pve1").start();
    let client = stack.operator("pve1");
    // Another tenant's, and one without an owner beside it.
    let theirs = stack.tenant("pve1", "team-b");
    let others = theirs.made_volume("theirs", "local", 2 * MIB, "raw").await;
    let volume = theirs.volume(&others).await.expect("their volume");
    let path = path_of(&layout, &volume);
    fill(&path, "raw", 77, 2);
    let nobodys = new_id();
    let name = format!("vm-{}-pvc-{nobodys}.raw", world::RESERVED);
    let stray = path.with_file_name(&name);
    std::fs::File::create(&stray).and_then(|f| f.set_len(MIB)).expect("a stray file");
    fill(&stray, "raw", 78, 1);
    // A VM's second disk.
    let (owner, slot) = PLANTED_DISK;
    let end = stack.pve("pve1").task("POST", &format!("/qemu/{owner}/config"), &format!("scsi{slot}=rawdir:0.001953125"));
    assert_eq!(end, "TASK OK");
    let own = Seen::own_disk(&stack, owner, slot);
    let file = own.split_once(':').expect("a volid").1;
    fill(&layout.host_path("/srv/raw/images").join(file), "raw", 79, 2);

    let vm = |vmid: u32| Vm { running: false, cores: 1, own: (vmid == owner).then(|| (slot, own.clone())).into_iter().collect() };
    let world = World { volumes: BTreeMap::new(), vms: VMS.map(|vmid| (vmid, vm(vmid))).into(), nobodys, others };
    let told = [volume.volid, format!("local:{}/{name}", world::RESERVED)].into();
    let baseline = Baseline::take(&stack, told);
    let mut vms = BTreeMap::new();
    for vmid in VMS {
        vms.insert(vmid, seeded(&client, vmid).await);
    }
    let run = Run::new(stack, client, vms, world, baseline);
    run.compare_all().await;
    run
}

/// Runs one sequence, and brings everything back to how it was.
async fn sequence(run: &mut Run, seed: u64, next: &AtomicU64) {
    let mut rng = Rng::new(seed);
    let mut story = Story { seed, next, steps: Vec::new() };
    let before = run.world.clone();
    for _ in 0..rng.between(12, 20) {
        let step = Step::draw(&mut rng, &run.world);
        let wanted = run.world.judge(&step);
        let meanwhile = if wanted.reasons.is_empty() { Meanwhile::draw(&mut rng, &step, &run.world) } else { None };
        story.steps.push((step.clone(), meanwhile));
        run.step(&step, meanwhile).await;
    }
    run.compare_all().await;
    for step in Step::tidying(&run.world) {
        story.steps.push((step.clone(), None));
        run.step(&step, None).await;
    }
    for (vmid, vm) in &before.vms {
        let step = Step::Cores { vmid: *vmid, cores: vm.cores };
        if run.world.vms[vmid].cores != vm.cores {
            run.step(&step, None).await;
        }
    }
    assert_eq!(run.world, before, "all is gone that the sequence made");
    run.compare_all().await;
}

#[test]
#[allow(clippy::print_stdout, reason = "which seeds were run, and how much that was, is the result")]
fn random_sequences_with_kills_leave_what_the_model_says() {
    let begun = Instant::now();
    let fresh = rand::random::<u64>() | 1 << 63;
    let seeds: Vec<u64> = match number("PVELET_MODEL_SEED") {
        Some(seed) => vec![seed],
        None => (1..number("PVELET_MODEL_SEQUENCES").unwrap_or(SEQUENCES)).chain([fresh]).collect(),
    };
    println!("volumes: {} sequences, the fresh one is {:#x}", seeds.len(), seeds[seeds.len() - 1]);
    let (next, sums) = (AtomicU64::new(0), Mutex::new(Sums::default()));
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut run = stack().await;
            while let Some(seed) = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).ok().and_then(|n| seeds.get(n)) {
                Box::pin(sequence(&mut run, *seed, &next)).await;
                run.sums.sequences += 1;
            }
            sums.lock().expect("sums").add(run.sums);
        });
    };
    // A stack has one agent, which is one process: two of them keep two processors busy.
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..seeds.len().min(2)).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            if let Err(failure) = worker.join() {
                panic::resume_unwind(failure);
            }
        }
    });
    let Sums { sequences, steps, refused, kills, again, points } = sums.into_inner().expect("sums");
    assert_eq!(sequences, seeds.len());
    let which = if sequences == 1 { format!("seed {:#x}", seeds[0]) } else { format!("seeds 1..{} and {fresh:#x}", sequences - 1) };
    println!(
        "volumes: {sequences} sequences ({which}), {steps} steps, {refused} refused, {kills} kills at {} named points and others, {again} \
         undone and made again, {:.0?}",
        points.len(),
        begun.elapsed()
    );
}
