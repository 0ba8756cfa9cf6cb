//! How many calls may be under way. What is too much is refused at once: a queue would only hide the overload.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{config, error::Error};

/// The kind of a call, each with places of its own: held-open mutations never keep a read out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Answered from memory.
    Read,
    /// Starts or changes an operation.
    Mutation,
    /// Changes the host's network.
    Network,
    /// Stays open; its place is held until it ends.
    Stream,
}

impl Class {
    /// As it stands in messages and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "reads",
            Self::Mutation => "mutations",
            Self::Network => "network changes",
            Self::Stream => "streams",
        }
    }
}

/// A place, given back when dropped.
#[derive(Debug)]
pub struct Place(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// The places of each class.
#[derive(Debug)]
pub struct Limits {
    reads: Arc<Semaphore>,
    mutations: Arc<Semaphore>,
    network: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Limits {
    /// As `[limits]` says.
    pub fn new(config: &config::Limits) -> Self {
        let places = |n: u32| Arc::new(Semaphore::new(n as usize));
        Self {
            reads: places(config.reads),
            mutations: places(config.mutations),
            network: places(config.network),
            streams: places(config.streams),
        }
    }

    /// Takes a place.
    ///
    /// # Errors
    /// `Overloaded` when none is free.
    pub fn enter(&self, class: Class) -> Result<Place, Error> {
        let places = match class {
            Class::Read => &self.reads,
            Class::Mutation => &self.mutations,
            Class::Network => &self.network,
            Class::Stream => &self.streams,
        };
        places.clone().try_acquire_owned().map(Place).map_err(|_| Error::Overloaded { what: class.as_str() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_full_class_sheds_at_once_and_leaves_the_others_alone() {
        let (mut config, _) = config::parse("[tls]\ntrust_domain = \"a.b\"\n").unwrap();
        config.limits.mutations = 1;
        let limits = Limits::new(&config.limits);
        let place = limits.enter(Class::Mutation).unwrap();
        assert_eq!(limits.enter(Class::Mutation).unwrap_err(), Error::Overloaded { what: "mutations" });
        assert!(limits.enter(Class::Read).is_ok());
        drop(place);
        assert!(limits.enter(Class::Mutation).is_ok());
    }
}
