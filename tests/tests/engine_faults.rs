//! Tests of a server whose engine hangs or has no memory: it must report that, and no client may wait for ever.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    env,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicIsize, AtomicU64, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use burn::tensor::{FloatDType, Int, Tensor};
use burn_flex::Flex;
use moi_engine::{Engine, InputRule, Sampling, SchedulerOptions};
use moi_models::{CausalLm, Decoder, Embedding, ForwardBatch, KvPool, ModelError};
use moi_pretrained::{Pretrained, WeightForm};
use moi_serve::{Address, Place, ServeOptions, ServedModel, listen};
use moi_tests::{
    bytes,
    server::{Client, TEST_TIMEOUT, events, parsed, until},
};
use serde_json::json;

const TEXT: &str = "/v1/completions";
/// An allocator that fails the large allocation of a given number, counted from when the number was set; never if it
/// is negative.
struct Failing;

static FAILS_AT: AtomicIsize = AtomicIsize::new(-1);
/// Smallest size of a large allocation, in bytes.
const LARGE: usize = 16 << 10;

// SAFETY: every allocation comes from the system's allocator; null reports that there is no memory.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let is_large = layout.size() >= LARGE;
        if is_large && FAILS_AT.load(SeqCst) >= 0 && FAILS_AT.fetch_sub(1, SeqCst) == 0 {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller fulfils the requirements of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller fulfils the requirements of the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// A door that blocks or delays forward passes.
#[derive(Clone, Default)]
struct Door(Arc<(Mutex<bool>, Condvar)>, Arc<AtomicU64>);

impl Door {
    fn set(&self, is_shut: bool) {
        *self.0.0.lock().unwrap() = is_shut;
        self.0.1.notify_all();
    }

    /// Delays every pass by this time.
    fn slow(&self, milliseconds: u64) {
        self.1.store(milliseconds, SeqCst);
    }

    fn pass(&self) {
        let shut = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(shut, |is_shut| *is_shut).unwrap());
        thread::sleep(Duration::from_millis(self.1.load(SeqCst)));
    }
}

/// A model whose passes wait for a door.
struct Stalling {
    model: Decoder<Flex>,
    door: Door,
}

impl CausalLm<Flex> for Stalling {
    fn embed(&self, ids: Tensor<Flex, 1, Int>) -> Tensor<Flex, 2> {
        self.model.embed(ids)
    }

    fn forward(
        &self,
        batch: ForwardBatch<'_, Flex>,
        pool: &mut KvPool<Flex>,
    ) -> Result<Tensor<Flex, 2>, ModelError> {
        self.door.pass();
        self.model.forward(batch, pool)
    }

    fn logits(&self, hidden: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
        self.model.logits(hidden)
    }

    fn embedding(&self) -> &Embedding<Flex> {
        self.model.embedding()
    }

    fn new_pool(&self, device: &<Flex as burn::tensor::backend::BackendTypes>::Device) -> KvPool<Flex> {
        self.model.new_pool(device)
    }

    fn context_length(&self) -> usize {
        self.model.context_length()
    }
}

/// Serves a tiny model until the process ends. Returns a client, the health of the server, and the door of the
/// model's passes.
fn serve(options: ServeOptions, max_running: usize) -> (Client, moi_serve::Health, Door) {
    let door = Door::default();
    let (own, (sender, listening)) = (door.clone(), mpsc::channel());
    thread::spawn(move || {
        let directory = bytes::model("llama", &[], None);
        let pretrained = Pretrained::open(directory.path()).unwrap();
        let device = Default::default();
        let model = pretrained.load::<Flex>(&device, WeightForm::Float(FloatDType::F32), |_| {}).unwrap();
        let tokenizer = pretrained.tokenizer.into_inner().unwrap().unwrap();
        let embedding = CausalLm::embedding(&model).dims();
        let engine =
            Engine::new(Stalling { model, door: own }, device).with_tokenizer(Some(tokenizer.clone()));
        let served = ServedModel {
            names: vec!["tiny".to_owned()],
            any_name: false,
            created: 0,
            tokenizer,
            template: Err("there is none".to_owned()),
            eos: vec![bytes::EOS],
            markers: None,
            context_length: engine.model().context_length(),
            embedding,
            sampling: Sampling::default(),
            rule: InputRule::TOKEN,
            scope: None,
            max_tokens: None,
            max_n: 16,
            priorities: false,
            speculation: Default::default(),
        };
        let listening = listen(&Address::Tcp("127.0.0.1:0".to_owned()), options).unwrap();
        let Place::Tcp(address) = *listening.place() else { unreachable!("it was asked to listen there") };
        let health = listening.health();
        let ready = move || sender.send((Client { address }, health)).unwrap();
        let scheduler = SchedulerOptions { max_running, ..SchedulerOptions::default() };
        listening.run(engine, device, served, scheduler, ready).unwrap();
    });
    let (client, health) = listening.recv_timeout(TEST_TIMEOUT).unwrap();
    (client, health, door)
}

/// The notes that the server has printed.
static NOTES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// An engine hangs while its HTTP threads are alive: `/health` answers, `/livez` and the service manager's watchdog
/// report the hang, and a note lists the requests in progress (llama.cpp#27388, prime-rl#2375). When the engine
/// continues, everything continues as if nothing had happened.
#[test]
fn an_engine_that_hangs_is_told_of() {
    let options = ServeOptions {
        live_timeout: Duration::from_millis(500),
        notes: Some(|note| NOTES.lock().unwrap().push(note.to_owned())),
        ..ServeOptions::default()
    };
    let (client, health, door) = serve(options, 64);
    let body = json!({"prompt": "Once", "max_tokens": 200, "ignore_eos": true, "seed": 3});
    let expected = client.ask(TEXT, &body)["choices"][0]["text"].clone();
    let asked = |id: &str| {
        let body = body.to_string();
        let headers = [("Content-Type", "application/json"), ("x-request-id", id)];
        client.request("POST", TEXT, &headers, body.as_bytes())
    };
    // The server is alive if its engine works or has no work.
    assert_eq!((client.get("/livez").status, health.is_live()), (200, true));
    door.set(true);
    let answer = thread::scope(|scope| {
        let answer = scope.spawn(|| asked("the-one-that-hangs"));
        until("nothing is said of the engine", || client.get("/livez").status == 503);
        assert!(!health.is_live(), "the watchdog must not be fed");
        for path in ["/health", "/readyz", "/metrics", "/v1/models"] {
            assert_eq!(client.get(path).status, 200, "{path}");
        }
        until("what hangs is not told", || {
            NOTES.lock().unwrap().iter().any(|note| note.contains("the-one-that-hangs of \"127.0.0.1\""))
        });
        let runs = client.get("/v1/moi/runs").json();
        assert_eq!(runs["data"][0]["request"], "the-one-that-hangs");
        let hangs = "the engine has not turned for 0.5 s, with 0 running and 1 waiting:";
        assert!(NOTES.lock().unwrap().iter().any(|note| note == hangs), "{:?}", NOTES.lock().unwrap());
        door.set(false);
        answer.join().unwrap()
    });
    assert_eq!((answer.status, &answer.json()["choices"][0]["text"]), (200, &expected));
    until("it does not live again", || client.get("/livez").status == 200 && health.is_live());
    until("that it turns again is not told", || {
        NOTES.lock().unwrap().last().is_some_and(|note| note == "the engine turns again")
    });
    client.settled();
}

/// A request that waits too long is refused, with a status or an event in its stream, without disturbing others. A
/// request with several samples is never refused once one sample has begun, however long the others wait.
#[test]
fn who_waits_for_too_long_is_told_so() {
    let options = ServeOptions { queue_timeout: Some(Duration::from_millis(400)), ..ServeOptions::default() };
    let (client, _, door) = serve(options, 1);
    let body = |tokens: u32| json!({"prompt": "Once", "max_tokens": tokens, "ignore_eos": true, "seed": 3});
    let expected = client.ask(TEXT, &body(400))["choices"][0]["text"].clone();
    // From here on, 400 tokens take four seconds, and a client reads them as they come.
    door.slow(10);
    thread::scope(|scope| {
        let running = scope.spawn(|| client.stream(TEXT, &body(400)));
        until("it does not run", || client.metric("vllm:num_requests_running") == 1.0);
        let refused = client.post(TEXT, &body(1));
        assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
        assert_eq!(refused.error()["code"], "rate_limit_exceeded");
        let events = client.stream(TEXT, &body(1));
        assert_eq!(events.last().unwrap()["error"]["code"], "rate_limit_exceeded", "{events:?}");
        let events = running.join().unwrap();
        let texts = events.iter().filter_map(|event| event["choices"][0]["text"].as_str());
        assert_eq!(json!(texts.collect::<String>()), expected);
    });
    client.settled();
    assert_eq!(client.metric("moi_queue_rejected_total"), 2.0);
    // Three samples run in turn for half a second each, so the last one waits for a second.
    let mut group = body(50);
    group["n"] = 3.into();
    assert_eq!(client.ask(TEXT, &group)["choices"].as_array().unwrap().len(), 3);
    client.settled();
}

/// The variable with the number of the large allocation that fails in a child process.
const FAIL_VARIABLE: &str = "MOI_TEST_FAILS_AT";

/// The server of the test below, in a child process; without the variable this test does nothing.
#[test]
fn serves_until_memory_is_out() {
    let Ok(at) = env::var(FAIL_VARIABLE) else { return };
    let (client, ..) = serve(ServeOptions::default(), 64);
    // Run one request first, so that everything that is created once exists.
    client.ask(TEXT, &json!({"prompt": "Once", "max_tokens": 2}));
    println!("listening at {}", client.address);
    FAILS_AT.store(at.parse().unwrap(), SeqCst);
    thread::sleep(TEST_TIMEOUT);
}

fn child(fails_at: usize) -> (Child, Client) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "serves_until_memory_is_out", "--nocapture"]);
    command.env(FAIL_VARIABLE, fails_at.to_string()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = lines.map(Result::unwrap).find_map(|line| {
        line.split_once("listening at ").map(|(_, address)| address.trim().parse().unwrap())
    });
    (child, Client { address: address.unwrap() })
}

/// If there is no memory for a large allocation, the server must answer each request or close its connection, and
/// then continue, or exit with a code that makes the service manager restart it. It must not hang (sglang#514).
#[test]
fn without_memory_nobody_waits_for_ever() {
    let mut ended = 0;
    for fails_at in [0, 1, 2, 3, 5, 8, 13, 21, 34] {
        let (mut process, client) = child(fails_at);
        let body = json!({
            "prompt": "Once upon a time ".repeat(12), "max_tokens": 60, "ignore_eos": true, "logprobs": 5, "stream": true,
        });
        // The process may end before it has taken all of them.
        let mut open: Vec<_> = (0..6).filter_map(|_| client.try_send(TEXT, &body).ok()).collect();
        for stream in &mut open {
            let mut bytes = Vec::new();
            let begun = Instant::now();
            // A client that is cut off reads an error, or nothing.
            let read = stream.read_to_end(&mut bytes);
            assert!(begun.elapsed() < TEST_TIMEOUT, "allocation {fails_at}: a request hangs");
            if read.is_ok() && String::from_utf8_lossy(&bytes).contains("[DONE]") {
                assert!(!events(&parsed(&bytes).text()).is_empty());
            }
        }
        // It takes a moment until an abort ends the process.
        until("it neither ends nor goes on", || {
            process.try_wait().unwrap().is_some() || std::net::TcpStream::connect(client.address).is_ok()
        });
        thread::sleep(Duration::from_millis(100));
        match process.try_wait().unwrap() {
            Some(status) => {
                assert!(!status.success(), "allocation {fails_at}");
                ended += 1;
            }
            None => {
                assert_eq!(
                    client.ask(TEXT, &json!({"prompt": "x", "max_tokens": 2}))["object"],
                    "text_completion"
                );
                process.kill().unwrap();
                process.wait().unwrap();
            }
        }
    }
    assert!(ended > 0, "no allocation has failed");
}
