//! Tests of the registry and its journal.
