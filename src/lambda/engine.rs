//! What a trigger needs of the lambda floor, as one small trait.
//!
//! ```text
//! trigger/ --(Invocation)--> Engine --(Answer | InvokeError)--> trigger/
//! ```
//!
//! Runs in the worker, on tokio. A future that is dropped before it ends is a
//! caller who went away: the engine gives up what it did for that call alone.

use std::future::Future;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::{Answer, Blame, FunctionName, Invocation, InvokeError};

/// Functions that can be called and stored.
pub trait Engine: Send + Sync + 'static {
    /// Calls a function, starting a sandbox if it must.
    fn invoke(&self, invocation: Invocation) -> impl Future<Output = Result<Answer, InvokeError>> + Send;

    /// Stores a function's code, a `.tar.gz`, in place of any older one.
    fn store(
        &self,
        name: &FunctionName,
        archive: Bytes,
    ) -> impl Future<Output = Result<(), RegistryFault>> + Send;

    /// Removes a function; `false` if there was none.
    fn remove(&self, name: &FunctionName) -> impl Future<Output = Result<bool, RegistryFault>> + Send;

    /// The names of all stored functions.
    fn list(&self) -> impl Future<Output = Result<Vec<String>, RegistryFault>> + Send;

    /// A function's settings as JSON; `None` if there is no such function.
    fn config(
        &self,
        name: &FunctionName,
    ) -> impl Future<Output = Result<Option<Value>, RegistryFault>> + Send;

    /// What `GET /stats` shows beside the timed steps.
    fn stats(&self) -> Map<String, Value>;

    /// A text picture of sandboxes, cgroups and memory.
    fn debug(&self) -> impl Future<Output = String> + Send;
}

/// The registry could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RegistryFault {
    pub blame: Blame,
    /// What went wrong and what to do, in one line.
    pub message: String,
}
