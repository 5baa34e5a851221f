//! kvserver
