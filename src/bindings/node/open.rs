//! What the objects of one open node share, and what keeps the process alive for it.

use std::sync::{Arc, Mutex};

use napi::bindgen_prelude::Function;
use napi::threadsafe_function::ThreadsafeFunction;
use napi::{Env, Status};

use super::life::Life;
use crate::node::Node;
use crate::sync::lock;

/// Node ends a process when nothing holds it; a threadsafe function is something that does.
type KeepAlive = ThreadsafeFunction<(), (), (), Status, false>;

/// An open node. Without `unref()` it stays open although nobody refers to it any more; else it is closed
/// when the last object of it is gone.
pub struct Open {
    node: Node,
    life: Life,
    runtime: tokio::runtime::Handle,
    keep_alive: Mutex<Option<KeepAlive>>,
}

impl Open {
    /// Takes the node over. Needs a tokio runtime.
    pub fn new(node: Node) -> Arc<Self> {
        let runtime = tokio::runtime::Handle::current();
        Arc::new(Self { node, life: Life::default(), runtime, keep_alive: Mutex::default() })
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Whether it is open still.
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// Keeps the process alive, and the node open, until [`Open::unrefer`] or the end.
    pub fn refer(open: &Arc<Self>, env: &Env) -> napi::Result<()> {
        if open.life.check().is_err() || lock(&open.keep_alive).is_some() {
            return Ok(());
        }
        let held = Arc::clone(open);
        let function: Function<'_, (), ()> =
            env.create_function_from_closure("alexP2PNode", move |_| {
                let _ = &held;
                Ok(())
            })?;
        let keep_alive = function.build_threadsafe_function().callee_handled::<false>().build()?;
        *lock(&open.keep_alive) = Some(keep_alive);
        Ok(())
    }

    /// Lets the process end.
    pub fn unrefer(&self) {
        // Dropped outside the lock: it may be the last to hold this node.
        let released = lock(&self.keep_alive).take();
        drop(released);
    }

    /// Closes the node and lets the process end.
    pub async fn close(&self) {
        self.life.end();
        self.node.close().await;
        self.unrefer();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.life.end();
        let node = self.node.clone();
        self.runtime.spawn(async move { node.close().await });
    }
}
