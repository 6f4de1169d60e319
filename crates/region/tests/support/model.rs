//! How models are run. Of its own, since nothing else here is built for loom.

use std::sync::Arc;

/// Runs every execution with at most so many preemptions.
pub(crate) fn model(preemptions: Option<usize>, body: impl Fn() + Send + Sync + 'static) {
    let executions = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 10_000;
    builder.check({
        let executions = executions.clone();
        move || {
            executions.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            body();
        }
    });
    println!(
        "{} executions",
        executions.load(std::sync::atomic::Ordering::Relaxed)
    );
}
