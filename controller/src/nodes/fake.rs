//! Nodes in memory.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::{Effect, Minor, NodeCondition, NodeView, Nodes, NodesError, Sight, Standing};

pub(crate) struct FakeNodes {
    state: Mutex<State>,
    changed: Mutex<Vec<mpsc::UnboundedSender<Option<String>>>>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) nodes: BTreeMap<String, NodeView>,
    pub(crate) server: Option<Minor>,
    /// The API server cannot be reached.
    pub(crate) away: bool,
    /// What was written, in order.
    pub(crate) writes: Vec<String>,
}

impl FakeNodes {
    pub(crate) fn new(names: &[&str]) -> Self {
        let view = NodeView { kubelet: "v1.33.1".into(), ..NodeView::default() };
        let nodes = names.iter().map(|n| ((*n).to_owned(), view.clone())).collect();
        let state = State { nodes, server: Minor::parse("v1.34.0"), ..State::default() };
        Self { state: Mutex::new(state), changed: Mutex::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Changes something, and tells it.
    pub(crate) fn change(&self, edit: impl FnOnce(&mut State)) {
        edit(&mut self.lock());
        self.tell(None);
    }

    fn tell(&self, name: Option<String>) {
        self.changed.lock().unwrap().retain(|c| c.send(name.clone()).is_ok());
    }

    pub(crate) fn view(&self, name: &str) -> NodeView {
        self.lock().nodes[name].clone()
    }

    fn write(&self, name: &str, text: String, edit: impl FnOnce(&mut NodeView)) -> Result<(), NodesError> {
        let mut state = self.lock();
        if state.away {
            return Err(NodesError::Failed("connection refused".into()));
        }
        edit(state.nodes.get_mut(name).ok_or_else(|| NodesError::Absent(name.to_owned()))?);
        state.writes.push(format!("{name} {text}"));
        drop(state);
        self.tell(Some(name.to_owned()));
        Ok(())
    }
}

#[tonic::async_trait]
impl Nodes for FakeNodes {
    fn node(&self, name: &str) -> Sight {
        let state = self.lock();
        match state.nodes.get(name) {
            _ if state.away => Sight::Unknown("connection refused".into()),
            Some(view) => Sight::Seen(view.clone()),
            None => Sight::Absent,
        }
    }

    fn server(&self) -> Option<Minor> {
        self.lock().server
    }

    fn changes(&self) -> Option<mpsc::UnboundedReceiver<Option<String>>> {
        // Whoever takes the place of a controller that was killed gets its own.
        let (changed, changes) = mpsc::unbounded_channel();
        self.changed.lock().unwrap().push(changed);
        Some(changes)
    }

    async fn set_condition(&self, name: &str, condition: Option<&NodeCondition>) -> Result<(), NodesError> {
        let text = condition.map_or("condition gone".to_owned(), |c| format!("condition {} {}", c.status, c.reason));
        self.write(name, text, |node| {
            node.condition = condition.map(|c| Standing {
                status: c.status.to_owned(),
                reason: c.reason.clone(),
                message: c.message.clone(),
                heartbeat: Some(Timestamp::now()),
            });
        })
    }

    async fn set_taint(&self, name: &str, effect: Option<Effect>) -> Result<(), NodesError> {
        let text = effect.map_or("taint gone".to_owned(), |e| format!("taint {}", e.name()));
        self.write(name, text, |node| node.taints = effect.map(|e| e.name().to_owned()).into_iter().collect())
    }
}
