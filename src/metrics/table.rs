//! The rows: every family, its labels and its help, once.
//!
//! Owns the spelling of what is counted. Knows no cell.

/// What a row's numbers count, hence the suffix of its family's name and the factor to the base
/// unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// A count of things.
    Count,
    /// Bytes; the name has the suffix `_bytes`.
    Bytes,
    /// Counted in microseconds, exposed as `_seconds`.
    Micros,
}

/// Whose number it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// One number per shard, told apart by the label `shard`.
    Shard,
    /// One number for the process.
    Process,
    /// One number for the process that the kernel knows, of whatever program: its family has the
    /// name that all of Prometheus' clients give it, without `greendot_` before.
    Kernel,
}

/// One time series (per shard, where its scope says so). Rows of the same family stand together and
/// share help and unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// Family, without `greendot_`, unit and `_total`; see [`Scope::Kernel`].
    pub family: &'static str,
    /// What the family's numbers count.
    pub unit: Unit,
    /// Whose number it is.
    pub scope: Scope,
    /// Labels beside `shard`.
    pub labels: &'static [(&'static str, &'static str)],
    /// The family's help text.
    pub help: &'static str,
}

/// Makes an enum and its table from one list, so that they cannot disagree.
macro_rules! table {
    (
        $(#[$meta:meta])* $kind:ident, $rows:ident:
        $( $scope:ident $unit:ident $family:literal $help:literal
            { $( $variant:ident $( $key:ident = $value:literal )? ),+ $(,)? } )+
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum $kind {
            $( $(
                #[doc = $help]
                $( #[doc = concat!("(`", stringify!($key), "=", $value, "`)")] )?
                $variant,
            )+ )+
        }

        impl $kind {
            /// The table, indexed by variant.
            pub const $rows: &'static [Row] = &[ $( $(
                Row {
                    family: $family,
                    unit: Unit::$unit,
                    scope: Scope::$scope,
                    labels: &[ $( (stringify!($key), $value) )? ],
                    help: $help,
                },
            )+ )+ ];

            /// All, in the order of the table.
            pub const ALL: &'static [$kind] = &[ $( $( $kind::$variant, )+ )+ ];

            /// Number of rows.
            pub const COUNT: usize = Self::$rows.len();

                    pub const fn row(self) -> &'static Row {
                &Self::$rows[self as usize]
            }
        }
    };
}

table! {
    /// What only grows.
    Counter, ROWS:

    Shard Count "conns_accepted" "Connections accepted" { ConnsAccepted }
    Shard Count "conns_closed" "Connections closed, by reason" {
        ClosedPeer reason = "peer",
        ClosedReset reason = "reset",
        ClosedDone reason = "done",
        ClosedFault reason = "fault",
        ClosedDeadline reason = "deadline",
        ClosedIdle reason = "idle",
        ClosedOverloaded reason = "overloaded",
        ClosedDrain reason = "drain",
        ClosedLeft reason = "left",
        ClosedBye reason = "bye",
        ClosedExpired reason = "expired",
        ClosedRevoked reason = "revoked",
        ClosedLife reason = "stream_life",
        ClosedEnded reason = "ended",
        ClosedEvicted reason = "evicted",
    }
    Shard Count "conns_evicted" "Connections dropped because their peer was hopeless, by reason" {
        EvictedWriteStall reason = "write_stall",
        EvictedUserTimeout reason = "user_timeout",
    }
    Shard Count "tls_handshakes" "TLS handshakes that ended well, by kind: full, or resumed by a \
                                  ticket" {
        TlsFull kind = "full",
        TlsResumed kind = "resumed",
    }
    Shard Count "tls_handshakes_failed" "TLS handshakes that came to nothing, by reason; alert: \
                                         the client refused, our certificate as a rule" {
        TlsGone reason = "gone",
        TlsNotTls reason = "not_tls",
        TlsVersion reason = "version",
        TlsIncompatible reason = "incompatible",
        TlsAlert reason = "alert",
        TlsMisbehaved reason = "misbehaved",
        TlsTimedOut reason = "timed_out",
    }
    Shard Count "tls_broken" "TLS connections that ended because a record broke a rule after the \
                              handshake, by reason" {
        TlsBrokenAlert reason = "alert",
        TlsBrokenDecrypt reason = "decrypt",
        TlsBrokenMisbehaved reason = "misbehaved",
        TlsBrokenWorn reason = "worn",
        TlsBrokenBuffers reason = "buffers",
    }
    Shard Bytes "received" "Bytes read from connections" { BytesIn }
    Shard Bytes "sent" "Bytes written to connections" { BytesOut }

    Shard Count "datagrams_received" "Beat datagrams received" { DatagramsReceived }
    Shard Count "datagrams_lost" "Beat datagrams that the kernel dropped, because the socket's \
                                  buffer was full; what it had merged is one" { DatagramsLost }
    Shard Count "datagrams_of_devices" "Beat datagrams taken that a device's own key has \
                                        signed" { DatagramsDevice }
    Shard Count "datagrams_refused" "Beat datagrams refused as a whole, by reason" {
        DatagramShort reason = "short",
        DatagramMagic reason = "magic",
        DatagramVersion reason = "version",
        DatagramKey reason = "key",
        DatagramMac reason = "mac",
        DatagramStale reason = "stale",
        DatagramEntry reason = "entry",
        DatagramRevoked reason = "revoked",
    }
    Shard Count "beats" "Beats accepted, by source" {
        BeatsUdp source = "udp",
        BeatsHttp source = "http",
        BeatsStream source = "stream",
        BeatsHolder source = "holder",
    }
    Shard Count "beats_refused" "Beats refused one by one, by reason: sent before an accepted \
                                 leave or an erasure, or no room for a new user" {
        BeatBeforeLeave reason = "before_leave",
        BeatBeforeErasure reason = "before_erasure",
        BeatUsersFull reason = "users_max",
        BeatTooFast reason = "too_fast",
        BeatNoSpace reason = "no_space",
    }
    Shard Count "fleet_beats_passed_on" "Beats of users whose home is another node of the fleet, \
                                         where they went" { FleetBeatsPassedOn }
    Shard Count "fleet_goodbyes_passed_on" "Goodbyes of which a user's home was told, as the fleet \
                                            was" { FleetGoodbyesPassedOn }
    Shard Count "fleet_calls_forwarded" "Calls about streams of other nodes of the fleet, sent \
                                         there" { CallsForwarded }
    Shard Count "fleet_beats_from_nodes" "Beats that other nodes of the fleet have passed on; they \
                                          count among beats by UDP" { FleetBeatsFromNodes }
    Shard Count "fleet_goodbyes_from_nodes" "Goodbyes of which other nodes of the fleet have \
                                             told" { FleetGoodbyesFromNodes }
    Shard Count "fleet_datagrams_refused" "Datagrams refused, for any reason, that say that a node \
                                           of the fleet has sent them" { FleetDatagramsRefused }
    Shard Count "fleet_words_refused" "Words of other nodes that were not taken: too many, or no \
                                       fleet" { FleetWordsRefused }
    Shard Count "tokens_refused" "Users' tokens refused, by reason" {
        TokenTooLong reason = "too_long",
        TokenForm reason = "form",
        TokenHeader reason = "header",
        TokenType reason = "type",
        TokenKey reason = "key",
        TokenAlgorithm reason = "algorithm",
        TokenSignature reason = "signature",
        TokenClaims reason = "claims",
        TokenSubject reason = "sub",
        TokenNoExpiry reason = "no_exp",
        TokenExpired reason = "expired",
        TokenLongLived reason = "long_lived",
        TokenEarly reason = "early",
        TokenAudience reason = "aud",
        TokenIssuer reason = "iss",
        TokenRevoked reason = "revoked",
        TokenGrant reason = "greendot",
        TokenService reason = "service",
    }
    Shard Count "tickets_refused" "Tickets refused, by reason; too_long: one that was not made" {
        TicketTooLong reason = "too_long",
        TicketForm reason = "form",
        TicketKey reason = "key",
        TicketMac reason = "mac",
        TicketOld reason = "old",
        TicketFuture reason = "future",
        TicketBeforeStart reason = "before_start",
        TicketUsed reason = "used",
    }
    Process Count "tickets_unasked" "Tickets that counted at a node of a fleet although its \
                                     database did not say whether another node had taken them" {
        TicketsUnasked
    }
    Shard Count "items_refused" "Items of lists that were refused by themselves while the others \
                                 stood, by reason" {
        ItemEmpty reason = "empty",
        ItemTooLong reason = "too_long",
        ItemNotUtf8 reason = "not_utf8",
        ItemControl reason = "control",
        ItemNotText reason = "not_a_string",
        ItemBadEscape reason = "bad_escape",
        ItemNotRecord reason = "not_a_record",
        ItemBadTime reason = "bad_time",
        ItemNoSince reason = "no_since",
        ItemUsersMax reason = "users_max",
        ItemTooFast reason = "too_fast",
        ItemSinceAhead reason = "since_ahead",
        ItemNoSpace reason = "no_space",
    }
    Shard Count "leaves" "Explicit goodbyes accepted, by source" {
        LeavesUdp source = "udp",
        LeavesHttp source = "http",
    }
    Shard Count "beats_sent" "Beats that this real-time node sent to presence nodes" { BeatsSent }
    Shard Count "told" "States that presence nodes published to this real-time node, by what \
                        they were: news, known already, or of a user of another presence node" {
        ToldAdopted kind = "news",
        ToldKnown kind = "known",
        ToldForeign kind = "foreign",
        ToldDoubted kind = "doubted",
    }
    Shard Count "requests_deferred" "Requests that waited for a slice" { RequestsDeferred }
    Shard Count "answers_parked" "Requests that waited for other shards" { AnswersParked }
    Shard Count "leaves_ignored" "Explicit goodbyes that changed nothing, by reason: a stream of \
                                  the user's is open, or nothing was known of the user, or no \
                                  beat that was not sent later" {
        LeavesHeld reason = "held",
        LeavesIgnored reason = "no_news",
    }
    Shard Count "leaves_unanswered" "Explicit goodbyes that were believed although not every \
                                     real-time node had answered for its streams" {
        LeavesUnanswered
    }
    Shard Count "statuses_untaken" "Statuses said at this real-time node that no presence node \
                                    has taken" { StatusesUntaken }
    Shard Count "calls_unanswered" "Queries and beats at this real-time node that a presence node \
                                    has not answered" { CallsUnanswered }

    Shard Count "users_forgotten" "Users erased, or forgotten after forget-after" { UsersForgotten }
    Shard Count "transitions" "Transitions decided by this shard, by direction" {
        TransitionsOnline to = "online",
        TransitionsOffline to = "offline",
    }
    Shard Count "users_flapping" "Times that a user came and went more often than \
                                  flap-transitions-max" { UsersFlapping }
    Shard Count "sweep_cycles" "Sweeps over all of this shard's slots that ended" { SweepCycles }
    Shard Count "sweep_slots" "Slots compared by sweeps" { SweepSlots }
    Shard Count "stalls" "Turns that came so late that expiries were put off" { Stalls }
    Shard Count "clock_steps" "Steps of the wall clock seen" { ClockSteps }

    Shard Count "marks" "Publishers marked as changed in a stream's outbox" { Marks }
    Shard Count "marks_coalesced" "Marks that found the publisher marked already: a state that \
                                   this reader skips" { MarksCoalesced }
    Shard Count "states_delivered" "Presence states encoded for streams" { StatesDelivered }
    Shard Count "events" "Events written to streams, by kind" {
        EventsHello kind = "hello",
        EventsSnapshot kind = "snapshot",
        EventsPresence kind = "presence",
        EventsPing kind = "ping",
        EventsOverloaded kind = "overloaded",
        EventsGoodbye kind = "goodbye",
        EventsBye kind = "bye",
        EventsExpired kind = "expired",
        EventsFigures kind = "figures",
    }
    Shard Count "flushes" "Writes to connections" { Flushes }
    Shard Count "flushes_partial" "Writes that the kernel took only in part" { FlushesPartial }
    Shard Count "resumes" "Streams begun with a last event id, by what they were told: what \
                           changed since, or everything" {
        ResumesPartial kind = "partial",
        ResumesFull kind = "full",
    }
    Shard Count "resumes_refused" "Streams begun with a last event id and told everything, by \
                                   reason: the id is no time, or one that the store does not \
                                   believe" {
        ResumeRefusedUnreadable reason = "unreadable",
        ResumeRefusedBeforeStore reason = "before_store",
        ResumeRefusedFuture reason = "future",
        ResumeRefusedAmbiguous reason = "ambiguous",
    }
    Shard Count "event_ids_withheld" "Writes of states to streams without an event id because \
                                      something may not have been told, by reason" {
        IdWithheldUnanswered reason = "unanswered",
        IdWithheldSource reason = "source",
        IdWithheldShard reason = "shard",
        IdWithheldMail reason = "mail",
        IdWithheldResync reason = "resync",
        IdWithheldClockStep reason = "clock_step",
    }

    Shard Count "mail_posted" "Pieces of mail posted to other shards" { MailPosted }
    Shard Count "mail_received" "Pieces of mail handled" { MailReceived }
    Shard Count "mail_overflows" "Pieces of mail that found a full mailbox" { MailOverflows }
    Shard Count "resyncs" "Times that this shard read the published states anew because its \
                           mailbox had been full" { Resyncs }

    Shard Micros "turn_busy" "Time spent working in turns" { TurnBusy }
    Shard Micros "turn_elapsed" "Time passed, working or asleep; busy / elapsed is the shard's \
                                 load" { TurnElapsed }

    Shard Count "limit_hits" "Times that a limit was reached, by the limit's flag" {
        LimitConns limit = "conns-max",
        LimitConnsPerAddress limit = "conns-per-address-max",
        LimitMemory limit = "memory-group",
        LimitHeadBytes limit = "head-bytes-max",
        LimitHeaderCount limit = "header-count-max",
        LimitBodyBytes limit = "body-bytes-max",
        LimitBodyDepth limit = "body-depth-max",
        LimitRequestDeadline limit = "request-deadline-ms",
        LimitKeepAliveIdle limit = "keep-alive-idle-ms",
        LimitWatchesPerStream limit = "watches-per-stream-max",
        LimitWatchesPerShard limit = "watches-per-shard-max",
        LimitNamesBytes limit = "names-bytes-max",
        LimitQueryUsers limit = "query-users-max",
        LimitPassedUsers limit = "passed-users-max",
        LimitLeavesPutOff limit = "leaves-put-off-max",
        LimitOutboxBytes limit = "outbox-bytes-max",
        LimitBufferBytes limit = "buffer-bytes-max",
        LimitWriteStall limit = "write-stall-max-ms",
        LimitTurnTime limit = "turn-ms-max",
        LimitWorkPerSlice limit = "work-per-slice-max",
        LimitAck limit = "ack-max-ms",
        LimitStreamLife limit = "stream-life-ms",
        LimitSweepSlotsPerTurn limit = "sweep-slots-per-turn-max",
        LimitFlushesPerTurn limit = "flushes-per-turn-max",
        LimitMailPerTurn limit = "mail-per-turn-max",
        LimitBeatsPerTurn limit = "beats-per-turn-max",
        LimitAcceptsPerTurn limit = "accepts-per-turn",
        LimitReadsPerTurn limit = "reads-per-turn",
        LimitReadBytesPerTurn limit = "read-bytes-per-turn",
        LimitClosesPerTurn limit = "closes-per-turn",
        LimitMailbox limit = "mailbox-max",
        LimitMailboxBytes limit = "mailbox-bytes-max",
        LimitTicketsBytes limit = "tickets-bytes-max",
        LimitUserQueries limit = "queries-per-user-second-max",
        LimitUserIds limit = "ids-per-user-minute-max",
        LimitUserEdits limit = "edits-per-user-second-max",
        LimitUserStreams limit = "streams-per-user-second-max",
        LimitUserWatches limit = "watch-lists-per-user-minute-max",
        LimitUserTickets limit = "tickets-per-user-second-max",
        LimitUsers limit = "users-max",
        LimitUsersLeaving limit = "users-leaving-max",
        LimitNewUsers limit = "new-users-per-second-max",
        LimitNewUsersOfConn limit = "new-users-per-conn-second-max",
        LimitRevocations limit = "revocations-max",
        LimitNodeStreams limit = "node-streams-max",
        LimitClientNames limit = "client-names-max",
        LimitFileDescriptors limit = "nofile",
        LimitTlsHandshakes limit = "tls-handshakes-max",
    }

    Process Count "store_write_back_cycles" "Times that the whole store was written \
                                             back" { StoreWriteBackCycles }
    Process Bytes "store_written_back" "Bytes of the store written back" { StoreWrittenBackBytes }
    Process Count "relay_datagrams" "Beat datagrams handed to the kernel for presence \
                                     nodes" { RelayDatagrams }
    Process Count "relay_datagrams_lost" "Beat datagrams for presence nodes that the kernel did \
     not take" { RelayDatagramsLost }
    Process Count "relay_datagrams_refused" "Times that a presence node's host said that nobody \
     receives the beats sent there" { RelayDatagramsRefused }
    Process Count "relay_datagrams_bundled" "Beat datagrams that went to presence nodes over HTTP, \
     because by UDP they did not arrive" { RelayBundled }
    Process Count "fleet_writes" "Users of whom this node has told the fleet's database something: \
                                  that they came, went, or said goodbye" { FleetWrites }
    Process Count "fleet_refused" "Commands that Redis refused, and answers and messages that are \
                                   none of the library's; the log has Redis' words" { FleetRefused }
    Process Count "fleet_said_dropped" "Goodbyes, log-outs, statuses and erasures that were given \
                                        up, because too many waited for Redis" { FleetSaidDropped }
    Process Count "fleet_lives" "Times that the fleet took this node for dead, so that it began \
                                 anew under another name" { FleetLives }
    Process Count "fleet_fences" "Partitions in which this node has seen to it that one that died \
                                  is not believed any more" { FleetFences }
    Process Count "fleet_reaped" "Users whom this node has taken from one that died or went; who \
                                  is nowhere else is offline then" { FleetReaped }
    Process Count "fleet_reconciles" "Times that a partition in Redis had not what this node has \
                                      told it, so that both were compared" { FleetReconciles }
    Process Count "fleet_repairs" "Times that a partition was looked at anew, because its messages \
                                   did not follow each other" { FleetRepairs }
    Process Count "fleet_users_read" "Users who were read from the fleet's \
                                      database" { FleetUsersRead }
    Process Count "fleet_late" "Calls that came to Redis later than they may, so that they changed \
                                nothing and were made again" { FleetLate }
    Process Count "fleet_datagrams" "Datagrams handed to the kernel for other nodes of the \
                                     fleet" { FleetDatagrams }
    Process Count "fleet_datagrams_lost" "Datagrams for other nodes of the fleet that the kernel \
                                          did not take" { FleetDatagramsLost }
    Process Count "relay_log_outs_lost" "Users whose log-out a node was not told, because too many \
     waited for it" { RelayLogOutsLost }
    Process Count "relay_requests" "Requests to nodes of the other role, by outcome" {
        RelayRequestsDone outcome = "done",
        RelayRequestsFailed outcome = "failed",
    }
    Process Count "relay_states" "States that other nodes were told, or told this one when \
                                  asked" { RelayStates }
    Process Count "relay_states_refused" "States for which there was no room \
     (users-max)" { RelayStatesRefused }
    Process Count "relay_states_untold" "States that a real-time node refuses each by itself, \
     passed over" { RelayStatesUntold }
    Process Count "relay_states_unasked" "States that a presence node refuses to be asked for each \
     by itself, passed over for a while" { RelayStatesUnasked }
    Process Count "relay_reasks" "Times that something that a presence node told was or may have \
                                  been missed, and all watched of it was asked for" { RelayReasks }
    Process Count "config_reloads" "Times that the configuration was to be read anew, by outcome" {
        ConfigReloadsDone outcome = "done",
        ConfigReloadsFailed outcome = "failed",
    }
    Process Count "webhook_messages" "Messages that webhooks' receivers have \
                                      taken" { WebhookMessages }
    Process Count "webhook_states" "States in messages that webhooks' receivers have \
                                    taken" { WebhookStates }
    Process Count "webhook_failures" "Messages that webhooks' receivers have not taken, and that \
                                      are sent again, by reason" {
        WebhookFailedLookup reason = "lookup",
        WebhookFailedReach reason = "reach",
        WebhookFailedConnection reason = "connection",
        WebhookFailedTls reason = "tls",
        WebhookFailedTimeout reason = "timeout",
        WebhookFailedProtocol reason = "protocol",
        WebhookFailedRedirect reason = "3xx",
        WebhookFailedRefused reason = "4xx",
        WebhookFailedFault reason = "5xx",
    }
    Process Count "webhook_skipped" "Transitions that a webhook's receiver was not told each by \
                                     itself, because it is told a later state of the same \
                                     user" { WebhookSkipped }
    Process Count "webhook_queue_overflows" "Times that a webhook's queue was full, and the \
                                             published states are read anew for \
                                             it" { WebhookOverflows }
    Process Count "webhook_erasures_untold" "Erased users of whom a webhook's receiver is not \
                                             told, because too many wait for \
                                             it" { WebhookErasuresUntold }
    Process Count "key_reloads" "Times that the files of keys were to be read anew, by outcome" {
        KeyReloadsDone outcome = "done",
        KeyReloadsFailed outcome = "failed",
    }
    Process Count "tls_certificate_reloads" "Times that the TLS certificate was to be read anew, \
                                             by outcome" {
        TlsReloadsDone outcome = "done",
        TlsReloadsFailed outcome = "failed",
    }
    Kernel Micros "process_cpu" "Total user and system CPU time spent in seconds" { ProcessCpu }
    Process Count "store_write_back_errors" "Write-backs of the store that \
                                             failed" { StoreWriteBackErrors }
}

table! {
    /// What rises and falls.
    Gauge, ROWS:

    Shard Count "conns" "Connections open, streams included" { Conns }
    Shard Count "streams" "Streams open" { Streams }
    Shard Bytes "buffered" "Memory that connections take for what is not answered or not \
                            written" { BufferedBytes }
    Shard Bytes "tls_buffered" "Memory that TLS records take which are not whole or not \
                                written" { TlsBufferedBytes }
    Shard Count "tls_handshakes_pending" "TLS handshakes in progress" { TlsHandshakes }
    Shard Count "watches" "Watches held, by what they name: a user with a slot, or an id that \
                           has never beaten" {
        WatchesBySlot by = "slot",
        WatchesByName by = "name",
    }
    Shard Count "expiries_held" "1 while nobody is expired because this process, not its \
                                 publishers, may have been silent" { ExpiriesHeld }
    Shard Count "mailbox_depth" "Pieces of mail waiting at the last turn" { MailboxDepth }
    Process Micros "tls_certificate_expires" "Unix time at which the TLS certificate that \
                                              handshakes have expires; 0 without TLS" {
        TlsCertificateExpires,
    }
    Process Count "users" "Users known" { Users }
    Process Count "users_max" "Most users that the store may hold" { UsersMax }
    Process Count "users_alarm" "1 while more than four fifths of users-max are known, or of the \
                                 room in users.log is used: soon new users are \
                                 refused" { UsersAlarm }
    Process Bytes "users_log" "Bytes of users.log used, those of users who are gone \
                               included" { UsersLog }
    Process Bytes "users_log_max" "Bytes of users.log at which new users are refused until a \
                                   restart or a compaction" { UsersLogMax }
    Process Count "users_online" "Users published as online" { UsersOnline }
    Process Count "users_overdue" "Users whose beats are overdue, while they are so many that a \
                                   link or a balancer has failed sooner than that all have \
                                   gone; else 0" { UsersOverdue }
    Process Micros "store_write_back_cycle" "Time that the last write-back of the whole store \
                                             took: what a power cut may lose" {
        StoreWriteBackCycle,
    }
    Process Count "store_files_lost" "1 while the data folder or a file in it is not the one that \
                                      is open: removed, replaced or cut short" { StoreFilesLost }
    Process Count "store_in_memory" "1 while the store's cells are in a memory, so that nobody \
                                     waits for a disk that stands still" { StoreInMemory }
    Process Micros "store_unwritten" "Time that a power cut would take of the store: since the \
                                      last write-back that came to its end had begun" {
        StoreUnwritten,
    }
    Process Count "store_write_back_late" "1 while the disk takes far longer than a cycle of the \
                                           write-back" { StoreWriteBackLate }
    Process Count "relay_queue" "Publishers whose state waits to be told to other nodes, or to \
                                 be asked for" { RelayQueue }
    Process Count "webhook_queue" "Users whose state waits to be told to webhooks' receivers, as \
                                   far as they are known" { WebhookQueue }
    Process Count "webhooks_failing" "Webhooks whose receiver has not taken the last \
                                      message" { WebhooksFailing }
    Process Micros "webhook_behind" "Time for which something has waited to be told to a webhook's \
                                     receiver, the one that is furthest behind" { WebhookBehind }
    Process Count "beats_gone" "Presence nodes at which this node's beat datagrams do not \
                                arrive" { BeatsGone }
    Process Count "nodes_down" "Nodes of the other role that do not answer" { NodesDown }
    Process Count "fleet_standing" "How the node stands in its fleet: 0 in none, 1 joining, 2 a \
                                    member, 3 doubtful, 4 fenced, 5 leaving" { FleetStanding }
    Process Count "fleet_nodes" "Nodes of the fleet that are alive, this one among \
                                 them" { FleetNodes }
    Process Count "fleet_homes" "Nodes of the fleet to which users' beats may go, this one among \
                                 them" { FleetHomes }
    Process Count "fleet_partitions_stale" "Partitions of the fleet of which this node may not \
                                            know the newest state" { FleetPartitionsStale }
    Process Count "fleet_connections" "Connections to the fleet's database" { FleetConnections }
    Process Count "fleet_subscriptions" "Partitions of the fleet whose messages are \
                                         heard" { FleetSubscriptions }
    Process Bytes "memory_limit" "What the memory control group allows; 0: anything" {
        MemoryLimit,
    }
    Process Bytes "memory_used" "What that group takes of it, but for what the kernel can take \
                                 back; from 95 % on new streams are refused" { MemoryUsed }
    Kernel Count "process_open_fds" "Number of open file descriptors" { ProcessOpenFds }
    Kernel Count "process_max_fds" "Maximum number of open file descriptors" { ProcessMaxFds }
    Kernel Bytes "process_virtual_memory" "Virtual memory size in bytes" { ProcessVirtualMemory }
    Kernel Bytes "process_resident_memory" "Resident memory size in \
                                            bytes" { ProcessResidentMemory }
    Kernel Micros "process_start_time" "Start time of the process since unix epoch in \
                                        seconds" { ProcessStartTime }
    Process Count "draining" "1 while shutting down" { Draining }
}

table! {
    /// How something is spread.
    Histogram, ROWS:

    Shard Micros "turn_duration" "Time that a turn worked" { TurnDuration }
    Shard Micros "sweep_duration" "Working time of a whole sweep over this shard's \
                                   slots" { SweepDuration }
    Shard Micros "delivery_latency" "From a transition's decision to the write that tells it to \
                                     a stream" { DeliveryLatency }
}

/// Makes the enum of one label's values.
macro_rules! label {
    (
        $(#[$meta:meta])* $kind:ident
        { $( $(#[$doc:meta])* $variant:ident = $value:literal ),+ $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum $kind { $( $(#[$doc])* $variant ),+ }

        impl $kind {
            /// All, in order.
            pub const ALL: &'static [$kind] = &[ $( $kind::$variant ),+ ];

            /// The label's value.
            pub const fn name(self) -> &'static str {
                match self { $( $kind::$variant => $value ),+ }
            }
        }
    };
}

label! {
    /// What a request called: the label `call`.
    Call {
        /// `GET /v1/presence/{user}`
        PresenceOne = "presence_one",
        /// `GET /v1/presence?user=`
        PresenceMany = "presence_many",
        /// `PUT /v1/presence/{user}` or `PUT /v1/presence`
        PresencePut = "presence_put",
        /// `DELETE /v1/presence/{user}`
        PresenceForget = "presence_forget",
        /// `POST /v1/presence/query`
        PresenceQuery = "presence_query",
        /// `GET` or `POST /v1/stream`
        Stream = "stream",
        /// `POST /v1/stream/{stream}/watch`
        StreamWatch = "stream_watch",
        StreamBeat = "stream_beat",
        StreamToken = "stream_token",
        Revoke = "revoke",
        Revocations = "revocations",
        /// `POST /v1/streams/held`
        StreamsHeld = "streams_held",
        /// `POST /v1/streams/end`
        StreamsEnd = "streams_end",
        /// `GET /v1/streams` and `GET /v1/node/streams`
        StreamsList = "streams_list",
        /// `GET /v1/streams/{stream}`
        StreamsOne = "streams_one",
        /// `DELETE /v1/streams/{stream}`
        StreamsCut = "streams_cut",
        /// `GET /v1/online`
        Online = "online",
        /// `POST /v1/beat`
        Beat = "beat",
        /// `POST /v1/datagrams`
        Datagrams = "datagrams",
        /// `POST /v1/status`
        Status = "status",
        /// `POST /v1/leave`
        Leave = "leave",
        /// `POST /v1/device-key`
        DeviceKey = "device_key",
        /// `POST /v1/ticket`
        Ticket = "ticket",
        /// `GET /livez` or `/readyz`
        Health = "health",
        /// `POST` or `DELETE /v1/session`
        Session = "session",
        /// `GET /v1/node` or `/v1/node/stream`
        Node = "node",
        /// `GET /metrics`
        Metrics = "metrics",
        /// Dashboard, browser client, API description
        Page = "page",
        /// No route, or no request at all
        Other = "other",
    }
}

label! {
    /// What a request was answered: the label `class`.
    StatusClass {
        /// 200 to 399
        Good = "2xx",
        /// 400 to 499
        Client = "4xx",
        /// 500 to 599
        Server = "5xx",
    }
}

impl StatusClass {
    /// The class of a status code.
    pub const fn of(status: u16) -> StatusClass {
        match status {
            0..400 => StatusClass::Good,
            400..500 => StatusClass::Client,
            _ => StatusClass::Server,
        }
    }
}

/// The row that all of [`Call`] x [`StatusClass`] share; each has the labels `call` and `class`.
pub const REQUESTS: Row = Row {
    family: "requests",
    unit: Unit::Count,
    scope: Scope::Shard,
    labels: &[],
    help: "Requests answered, by call and class of the status",
};
