//! What the host's health costs, beside a real containerd: GetHealth from memory, all checks at their default periods, and how soon a containerd
//! that stops is noticed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use pvelet_proto::v1::{self, CheckState};
use pvelet_tests::{Client, Stack, StackOptions, containerd::Containerd, process::cpu_seconds};
use tokio::{runtime::Runtime, time::timeout};

use crate::report::{Report, ms, quantile};

/// Three runs of what runs each minute.
const WINDOW: Duration = Duration::from_secs(180);
/// After the start: every check has looked once, and what ran only for that has ended.
const SETTLED: Duration = Duration::from_secs(10);
/// Longer, and it was not noticed.
const PATIENCE: Duration = Duration::from_secs(30);
const RESPONDING: &str = "containerd.responding";

/// An agent that looks at this containerd; with `seldom`, only what is asked each second runs after the first look.
fn stack(containerd: &Containerd, seldom: bool) -> Stack {
    let place = containerd.place();
    let pace = if seldom { "period = \"1h\"\nprobe = false\n" } else { "" };
    let text =
        format!("[health]\nworker = \"yes\"\ncontainerd_socket = {:?}\ncontainerd_config = {:?}\n{pace}", place.socket(), place.config());
    Stack::start(StackOptions { extra: BTreeMap::from([("rest".to_owned(), text)]), ..StackOptions::default() })
}

/// The share of a core that an agent takes while nothing happens, percent.
fn share(stack: &mut Stack) -> f64 {
    let pid = stack.agent("pve1").process().pid();
    std::thread::sleep(SETTLED);
    let (before, begun) = (cpu_seconds(pid), Instant::now());
    std::thread::sleep(WINDOW);
    (cpu_seconds(pid) - before) / begun.elapsed().as_secs_f64() * 100.0
}

async fn health(client: &Client) -> v1::Health {
    client.agent.health().get_health(v1::GetHealthRequest::default()).await.unwrap().into_inner().health.unwrap()
}

/// How long it takes until it is told that containerd answers, or no longer does.
async fn told(client: &Client, well: bool, cause: impl FnOnce()) -> Duration {
    let mut stream = client.agent.health().watch_health(v1::WatchHealthRequest {}).await.unwrap().into_inner();
    let mut first = true;
    let mut cause = Some(cause);
    let mut begun = Instant::now();
    let wait = async {
        loop {
            let message = stream.message().await.unwrap().unwrap();
            if let Some(cause) = cause.take() {
                begun = Instant::now();
                cause();
            }
            let checks = message.health.unwrap().checks;
            let there = checks.iter().find(|c| c.id == RESPONDING).map(|c| (c.state() == CheckState::Ok) == well);
            // What was so before the cause is no news, unless it is waited for.
            if there == Some(true) && (!first || well) {
                return begun.elapsed();
            }
            first = false;
        }
    };
    timeout(PATIENCE, wait).await.expect("told in time")
}

pub(crate) fn run(runtime: &Runtime, report: &mut Report) {
    let containerd = runtime.block_on(Containerd::start());
    let mut with = stack(&containerd, false);
    let client = with.operator("pve1");
    let (mut times, mut stopped, mut ended) = (Vec::new(), Vec::new(), Vec::new());
    let checks = runtime.block_on(async {
        told(&client, true, || {}).await;
        for i in 0..2200 {
            let begun = Instant::now();
            health(&client).await;
            if i >= 200 {
                times.push(ms(begun.elapsed()));
            }
        }
        for _ in 0..5 {
            stopped.push(ms(told(&client, false, || containerd.freeze()).await));
            told(&client, true, || containerd.thaw()).await;
        }
        for _ in 0..3 {
            ended.push(ms(told(&client, false, || containerd.kill()).await));
            containerd.launch().await.unwrap();
            told(&client, true, || {}).await;
        }
        health(&client).await.checks.len()
    });
    drop(client);
    report.at_most(&format!("GetHealth of {checks} checks over mTLS, p50"), quantile(&mut times, 0.5), "ms", 1.0);
    report.tell("GetHealth over mTLS, p99", quantile(&mut times, 0.99), "ms");
    report.at_most("containerd stopped (SIGSTOP) to told, longest of 5", quantile(&mut stopped, 1.0), "ms", 2000.0);
    report.at_most("containerd killed to told, longest of 3", quantile(&mut ended, 1.0), "ms", 2000.0);
    let all = share(&mut with);
    drop(with);
    report.at_most("agent with all checks at their default periods: share of a core", all, "%", 0.5);
    report.tell("the same with those of each second alone", share(&mut stack(&containerd, true)), "%");
}
