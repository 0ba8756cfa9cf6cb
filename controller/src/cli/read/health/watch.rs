//! `pveletctl health --watch`: what is not well, then what changes.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use pvelet_proto::v1;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
};

use super::{look, plain};
use crate::{
    agents::{AgentClient, AgentError},
    cli::{
        CliError, Exit, Session,
        args::Health,
        view::{HealthCheckView, HealthEventView, HealthView, State, time},
        watch::{again, render},
    },
};

/// What was told last of each check of one host.
type Told = Mutex<HashMap<String, (State, String)>>;

pub(super) async fn watch(session: &Session, args: &Health) -> Result<Exit, CliError> {
    let (send, mut events) = mpsc::channel(256);
    let mut tasks = JoinSet::new();
    for agent in &session.agents {
        let (agent, io, send) = (agent.clone(), session.io.clone(), send.clone());
        let told = Arc::new(Told::default());
        tasks.spawn(again(io, move |heard| {
            let (agent, told, send) = (agent.clone(), Arc::clone(&told), send.clone());
            async move { stream(&agent, &told, &send, &heard).await }
        }));
    }
    drop(send);
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(event) = events.recv().await else {
            // Every host has refused for good.
            return Ok(Exit::Unreachable);
        };
        if !args.groups.is_empty() && !args.groups.contains(&event.check.group) || !concerns(&event, args.all) {
            continue;
        }
        let colour = session.io.colour;
        session.io.print(&render(session.format, &event, |e| look(e.check.state).paint(colour, &line(e)))?)?;
        left -= 1;
    }
    Ok(Exit::Ok)
}

/// Whether somebody who watches wants to read it: at first only what is not well.
fn concerns(event: &HealthEventView, whole: bool) -> bool {
    match (event.was, event.check.state) {
        (None, state) => state.is_bad() || whole,
        (Some(_), State::NotApplicable) => whole,
        (Some(_), _) => true,
    }
}

/// One stream to its end; `Ok` when nobody listens any more.
async fn stream(agent: &AgentClient, told: &Told, send: &mpsc::Sender<HealthEventView>, heard: &AtomicBool) -> Result<(), AgentError> {
    let opened = agent.health().watch_health(v1::WatchHealthRequest {}).await;
    let mut stream = opened.map_err(|s| agent.health_error(s))?.into_inner();
    while let Some(message) = stream.message().await.map_err(|s| agent.health_error(s))? {
        heard.store(true, Ordering::Relaxed);
        let health = message.health.unwrap_or_default();
        let time = health.time.as_ref().and_then(time);
        for check in HealthView::new(agent.name(), &health).checks {
            let before = told.lock().await.insert(check.id.clone(), (check.state, check.seen.clone()));
            // After a stream broke all checks are told again.
            if before.as_ref().is_some_and(|(state, seen)| (*state, seen) == (check.state, &check.seen)) {
                continue;
            }
            let event = HealthEventView { host: agent.name().to_owned(), time: time.clone(), was: before.map(|(state, _)| state), check };
            if send.send(event).await.is_err() {
                return Ok(());
            }
        }
    }
    Err(agent.error(&tonic::Status::unavailable("the agent ended the stream")))
}

fn line(e: &HealthEventView) -> String {
    let HealthCheckView { id, state, seen, .. } = &e.check;
    let was = e.was.filter(|was| was != state).map(|was| format!(" (was {})", was.word())).unwrap_or_default();
    format!("{}  {}  {id}  {}{was}  {}", e.time.as_deref().unwrap_or("-"), e.host, state.word(), plain(seen))
}
