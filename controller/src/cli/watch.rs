//! `pveletctl watch`: the events of all hosts in one stream.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pvelet_proto::v1;
use serde::Serialize;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{CliError, Exit, Io, Session, args::Format, args::Watch, output, view::EventView};
use crate::agents::{AgentClient, AgentError};

/// The first and the longest pause before a host is asked again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long the first events wait for hosts that have not been heard of.
const GATHERING: Duration = Duration::from_secs(2);

/// The cluster and node of every host whose stream is open. Each agent tells about VMs of its whole cluster; so that each event is told
/// once, it is taken from the VM's own host, or from the first one where that does not answer.
#[derive(Clone)]
struct Open {
    places: Arc<Mutex<BTreeMap<String, (String, String)>>>,
    /// Hosts whose first attempt has neither opened a stream nor failed yet. Until they have, nobody can know whose an event is.
    awaited: Arc<watch::Sender<BTreeSet<String>>>,
}

impl Open {
    fn new<'a>(hosts: impl IntoIterator<Item = &'a str>) -> Self {
        let awaited = hosts.into_iter().map(str::to_owned).collect();
        Self { places: Arc::default(), awaited: Arc::new(watch::Sender::new(awaited)) }
    }

    fn set(&self, host: &str, place: Option<(String, String)>) {
        {
            let mut open = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            match place {
                Some(place) => open.insert(host.to_owned(), place),
                None => open.remove(host),
            };
        }
        self.awaited.send_if_modified(|awaited| awaited.remove(host));
    }

    /// Returns when every host has been heard of. One that hangs is not waited for long.
    async fn gathered(&self) {
        let _ = timeout(GATHERING, self.awaited.subscribe().wait_for(BTreeSet::is_empty)).await;
    }

    fn tells(&self, host: &str, node: &str) -> bool {
        let open = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((cluster, own)) = open.get(host) else { return true };
        let mut of_cluster = open.iter().filter(|(_, (c, _))| c == cluster);
        if own == node {
            return true;
        }
        let first = of_cluster.clone().next().is_some_and(|(h, _)| h == host);
        first && !of_cluster.any(|(_, (_, n))| n == node)
    }
}

pub(super) async fn watch(session: &Session, args: &Watch) -> Result<Exit, CliError> {
    let (send, mut events) = mpsc::channel(256);
    let (open, mut tasks) = (Open::new(session.agents.iter().map(AgentClient::name)), JoinSet::new());
    for agent in &session.agents {
        tasks.spawn(host(agent.clone(), open.clone(), session.io.clone(), send.clone()));
    }
    drop(send);
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(event) = events.recv().await else {
            // Every host has refused for good.
            return Ok(Exit::Unreachable);
        };
        if event.event == "existing" && !args.existing {
            continue;
        }
        session.io.print(&render(session.format, &event, line)?)?;
        left -= 1;
    }
    Ok(Exit::Ok)
}

/// Watches one host until it refuses for good or nobody listens.
async fn host(agent: AgentClient, open: Open, io: Io, send: mpsc::Sender<EventView>) {
    again(io, |told| {
        let (agent, open, send) = (agent.clone(), open.clone(), send.clone());
        async move {
            let ended = stream(&agent, &open, &send, &told).await;
            open.set(agent.name(), None);
            ended
        }
    })
    .await;
}

/// Opens a stream again and again until it is refused for good, or ends with `Ok`. It sets its argument once something has come.
pub(super) async fn again<F, Fut>(io: Io, stream: F)
where
    F: Fn(Arc<AtomicBool>) -> Fut,
    Fut: Future<Output = Result<(), AgentError>>,
{
    let mut pause = PAUSE.0;
    let mut last = String::new();
    loop {
        let told = Arc::new(AtomicBool::new(false));
        let Err(error) = stream(Arc::clone(&told)).await else { return };
        if told.load(Ordering::Relaxed) {
            (pause, last) = (PAUSE.0, String::new());
        }
        let again = error.retryable() || error.unreachable() && error.code == tonic::Code::Unavailable;
        let line = error.to_string();
        if line != last {
            io.warn(&format!("{line}; {}", if again { "trying again" } else { "given up" }));
            last = line;
        }
        if !again {
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// One stream to its end; `Ok` when nobody listens any more.
async fn stream(agent: &AgentClient, open: &Open, send: &mpsc::Sender<EventView>, told: &AtomicBool) -> Result<(), AgentError> {
    let place = agent.get_host().await?;
    let mut stream = agent.answer(agent.host().watch_host(v1::WatchHostRequest {}).await)?;
    open.set(agent.name(), Some((place.cluster, place.node)));
    open.gathered().await;
    while let Some(message) = stream.message().await.map_err(|s| agent.error(&s))? {
        told.store(true, Ordering::Relaxed);
        let Some(event) = EventView::new(agent.name(), &message) else { continue };
        let mine = event.vm.as_ref().is_none_or(|vm| open.tells(agent.name(), &vm.node));
        if mine && send.send(event).await.is_err() {
            return Ok(());
        }
    }
    Err(agent.error(&tonic::Status::unavailable("the agent ended the stream")))
}

pub(super) fn render<T: Serialize>(format: Format, event: &T, line: impl FnOnce(&T) -> String) -> Result<String, CliError> {
    match format {
        Format::Json => serde_json::to_string(event).map(|l| l + "\n").map_err(|e| CliError::Output(std::io::Error::other(e))),
        Format::Yaml => Ok(format!("---\n{}", output::yaml(event)?)),
        Format::Table | Format::Wide => Ok(line(event) + "\n"),
    }
}

fn line(e: &EventView) -> String {
    let mut line = format!("{}  {}  {}", e.time.as_deref().unwrap_or("-"), e.host, e.event);
    if let Some(vm) = &e.vm {
        line += &format!("  {}  {}  {}", vm.vmid, if vm.name.is_empty() { "-" } else { &vm.name }, vm.state);
        if !e.from_node.is_empty() {
            line += &format!("  from {} to {}", e.from_node, vm.node);
        }
        if !vm.lock.is_empty() {
            line += &format!("  locked: {}", vm.lock);
        }
    }
    if let Some(f) = &e.facts {
        line += &format!("  mode {}, state {}, {}", f.mode, f.state, if f.quorate { "quorate" } else { "no quorum" });
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_told_by_one_host() {
        let open = Open::new([]);
        for (host, cluster, node) in [("a", "lab", "pve1"), ("b", "lab", "pve2"), ("c", "prod", "pve1")] {
            open.set(host, Some((cluster.to_owned(), node.to_owned())));
        }
        // Its own host, whatever others say.
        assert!(open.tells("b", "pve2") && !open.tells("a", "pve2"));
        // Another cluster's node of the same name is another node.
        assert!(open.tells("c", "pve1") && open.tells("a", "pve1"));
        // A node without an agent here: the first of its cluster.
        assert!(open.tells("a", "pve9") && !open.tells("b", "pve9") && open.tells("c", "pve9"));
        open.set("b", None);
        assert!(open.tells("a", "pve2"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_events_wait_until_every_host_is_heard_of_but_not_for_one_that_hangs() {
        let open = Open::new(["a", "b"]);
        open.set("a", Some(("lab".to_owned(), "pve1".to_owned())));
        let mut first = Box::pin(open.gathered());
        assert!(futures_util::poll!(first.as_mut()).is_pending());
        open.set("b", None);
        first.await;
        Open::new(["a"]).gathered().await;
    }
}
