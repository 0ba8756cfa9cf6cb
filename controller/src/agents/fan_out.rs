//! The same question to many hosts.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{AgentClient, AgentError};

/// What one host answered.
#[derive(Debug)]
pub struct HostResult<T> {
    /// The host's name.
    pub host: String,
    /// Its answer.
    pub result: Result<T, AgentError>,
    /// How long it took.
    pub duration: Duration,
}

/// Asks all hosts at once. Every host has the whole `deadline` for itself, and its result stands alone: a dead one costs its own row, after
/// its own deadline, and nothing else. Results come in the order of the hosts.
pub async fn fan_out<T, F, Fut>(agents: &[AgentClient], deadline: Duration, call: F) -> Vec<HostResult<T>>
where
    F: Fn(AgentClient) -> Fut,
    Fut: Future<Output = Result<T, AgentError>>,
{
    join_all(agents.iter().map(|agent| {
        let asked = call(agent.clone());
        async move {
            let begin = Instant::now();
            let result = timeout(deadline, asked).await.unwrap_or_else(|_| Err(AgentError::deadline(agent.name(), deadline)));
            HostResult { host: agent.name().to_owned(), result, duration: begin.elapsed() }
        }
    }))
    .await
}
