//! The stream of one agent's health, and its clock.

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use jiff::Timestamp;
use pvelet_proto::v1;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tracing::debug;

use super::{Clock, Health, HealthSight};
use crate::{
    agents::AgentError,
    reconcile::{Wake, session::Session, timestamp},
};

/// The first and the longest pause before the stream is opened again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// How often the clocks are compared.
const CLOCK: Duration = Duration::from_secs(60);

impl Session {
    /// Listens for as long as the connection stands, whatever happens to the stream.
    pub(in crate::reconcile) async fn follow_health(&self, offered: bool) -> Infallible {
        if !offered {
            self.set_health(|_| HealthSight::NotOffered);
            return pending().await;
        }
        let mut pause = PAUSE.0;
        loop {
            let mut told = false;
            // Where it ended in order, as for a reader that is too slow, nothing is wrong before it is refused.
            let error = self.listen_to_health(&mut told).await.err();
            if told {
                pause = PAUSE.0;
            } else if let Some(e) = error {
                debug!(host = self.name, "health: {e}");
                self.set_health(|_| HealthSight::Lost(e.text()));
            }
            sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    async fn listen_to_health(&self, told: &mut bool) -> Result<(), AgentError> {
        let mut stream = self.client.watch(v1::WatchHealthRequest {}).await.map_err(|s| self.client.health_error(s))?;
        let mut clock = interval_at(Instant::now(), CLOCK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = stream.message() => match message {
                    Ok(Some(v1::WatchHealthResponse { health: Some(health), complete, .. })) => {
                        *told = true;
                        self.change_health(|known| known.take(&health, complete, &self.common.names));
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => return Ok(()),
                    Err(status) => return Err(self.client.health_error(status)),
                },
                // Not before the checks are known, which the measurement is put beside.
                _ = clock.tick(), if *told => {
                    match Box::pin(self.measure_clock()).await {
                        Ok(Some(clock)) => self.change_health(|known| known.with_clock(clock)),
                        Ok(None) => {}
                        Err(e) => debug!(host = self.name, "its clock cannot be compared: {e}"),
                    }
                }
            }
        }
    }

    /// How far the host's clock is from ours.
    async fn measure_clock(&self) -> Result<Option<Clock>, AgentError> {
        let (begun, start) = (Timestamp::now(), Instant::now());
        let health = self.client.get_health(&["agent".to_owned()]).await?;
        let told = health.time.as_ref().and_then(timestamp);
        Ok(told.map(|told| Clock::measured(told, begun, start.elapsed())))
    }

    fn change_health(&self, edit: impl FnOnce(&Health) -> Health) {
        self.set_health(|known| {
            let nothing = Health::default();
            let known = if let HealthSight::Told(known) = known { known } else { &nothing };
            HealthSight::Told(Arc::new(edit(known)))
        });
    }

    fn set_health(&self, edit: impl FnOnce(&HealthSight) -> HealthSight) {
        let changed = {
            let mut state = self.state();
            let new = edit(&state.health);
            let changed = state.health != new;
            state.health = new;
            changed
        };
        if changed {
            self.tell(Wake::Health(self.name.clone()));
        }
    }
}
