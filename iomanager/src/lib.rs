//! iomanager
