//! The lambda floor of a running worker, as triggers see it: all functions.
//! Runs in the worker.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::function::{Floor, Function};
use super::log::FunctionLog;
use super::{Answer, Blame, CodeError, Engine, FunctionName, Invocation, InvokeError, RegistryFault, code};
use crate::stats::Stats;

/// All functions of a worker.
pub struct Worker {
    floor: Arc<Floor>,
    functions: Mutex<HashMap<FunctionName, Function>>,
    stats: Arc<Stats>,
    logs: PathBuf,
    log_limit: u64,
}

impl Worker {
    pub fn new(floor: Floor, stats: Arc<Stats>, logs: PathBuf, log_limit: u64) -> Self {
        Self { floor: Arc::new(floor), functions: Mutex::default(), stats, logs, log_limit }
    }

    /// Ends every instance, and with it every sandbox of a function.
    pub fn stop(&self) {
        self.functions().clear();
    }

    /// A function's queue, started if its function is in the registry. Names
    /// that are not leave nothing behind.
    async fn function(&self, name: &FunctionName) -> Result<Function, InvokeError> {
        if let Some(function) = self.known(name) {
            return Ok(function);
        }
        let (registry, asked) = (self.floor.registry.clone(), name.clone());
        let found = tokio::task::spawn_blocking(move || registry.fingerprint(&asked)).await;
        match found.map_err(|_| InvokeError::Stopping)? {
            Ok(None) => Err(InvokeError::UnknownFunction(name.to_string())),
            Err(error) => {
                Err(InvokeError::NotReady { function: name.to_string(), reason: error.to_string() })
            }
            Ok(Some(_)) => Ok(self.start(name)),
        }
    }

    fn known(&self, name: &FunctionName) -> Option<Function> {
        self.functions().get(name).filter(|function| !function.is_gone()).cloned()
    }

    fn start(&self, name: &FunctionName) -> Function {
        let mut functions = self.functions();
        functions.retain(|_, function| !function.is_gone());
        let start = || {
            let log = FunctionLog::new(&self.logs, name, self.log_limit);
            Function::start(name.clone(), Arc::clone(&self.floor), log)
        };
        functions.entry(name.clone()).or_insert_with(start).clone()
    }

    fn functions(&self) -> MutexGuard<'_, HashMap<FunctionName, Function>> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for Worker {
    async fn invoke(&self, invocation: Invocation) -> Result<Answer, InvokeError> {
        let begun = Instant::now();
        let function = self.function(&invocation.function).await?;
        let answer = function.invoke(invocation).await;
        self.stats.record("LambdaFunc.Invoke", begun.elapsed());
        if let Ok(answer) = &answer {
            for (step, took) in &answer.timings.0 {
                self.stats.record(step, *took);
            }
        }
        answer
    }

    async fn store(&self, name: &FunctionName, archive: Bytes) -> Result<(), RegistryFault> {
        let (registry, name, terms) = (self.floor.registry.clone(), name.clone(), self.floor.terms);
        blocking(move || code::store(&registry, &name, &archive[..], &terms).map(drop)).await
    }

    async fn remove(&self, name: &FunctionName) -> Result<bool, RegistryFault> {
        let (registry, owned) = (self.floor.registry.clone(), name.clone());
        let removed = blocking(move || registry.remove(&owned)).await?;
        // Its task stays until nobody runs its code: a function of the same name
        // that is stored meanwhile is that task's as well.
        if let Some(function) = self.functions().get(name) {
            function.remove();
        }
        Ok(removed)
    }

    async fn list(&self) -> Result<Vec<String>, RegistryFault> {
        let registry = self.floor.registry.clone();
        let names = blocking(move || registry.list()).await?;
        Ok(names.iter().map(FunctionName::to_string).collect())
    }

    async fn config(&self, name: &FunctionName) -> Result<Option<Value>, RegistryFault> {
        let (registry, owned) = (self.floor.registry.clone(), name.clone());
        if blocking(move || registry.fingerprint(&owned)).await?.is_none() {
            return Ok(None);
        }
        let version = self.floor.versions.prepare(name).await;
        let version =
            version.map_err(|error| RegistryFault { blame: error.blame(), message: error.to_string() })?;
        Ok(Some(version.declared.config.to_json(self.floor.shared.limits)))
    }

    fn stats(&self) -> Map<String, Value> {
        let mut stats = Map::new();
        stats.insert("sandboxes".into(), self.floor.shared.sandboxes.taken().into());
        stats
    }

    async fn debug(&self) -> String {
        let shared = &self.floor.shared;
        let mut names: Vec<_> = self.functions().keys().map(FunctionName::to_string).collect();
        names.sort();
        let taken = shared.sandboxes.taken();
        let limit = shared.sandboxes.tuning.max_sandboxes;
        let trees = shared.forest.picture().await;
        let sandboxes = Arc::clone(&shared.sandboxes);
        // It looks at processes: nothing else of the worker waits for that.
        let sandboxes = tokio::task::spawn_blocking(move || sandboxes.picture()).await.unwrap_or_default();
        format!("sandboxes: {taken} of {limit}\n{sandboxes}{trees}functions: {}\n", names.join(" "))
    }
}

async fn blocking<T: Send + 'static, E: Into<CodeError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, RegistryFault> {
    let fault = |blame, message: String| RegistryFault { blame, message };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| fault(Blame::Worker, "the worker is stopping".to_owned()))?
        .map_err(Into::into)
        .map_err(|error: CodeError| fault(error.blame(), error.to_string()))
}
