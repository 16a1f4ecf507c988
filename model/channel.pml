/*
 * The binder of docs/PROTOCOL.md against an attacker who is the network, the host and a
 * member. model/README.md says what this abstracts from and how to read it.
 *
 * A run is one party's part in one conversation: a node's exchange (purposes 1 and 2), a node
 * issuing a certificate (3), answering a challenge (4) or enrolling (5), a client looking at a
 * certificate or challenging a node, an enroller granting. First the attacker chooses: who
 * runs what, with whom it ends TLS, whose nonce everybody hears. Then runs accept evidence
 * in any order. All nonces are there from the start, so every interleaving of HELLOs is.
 *
 * The attacker ends TLS wherever it likes, holds the identity keys of all nodes (they are
 * stolen), an identity E with a Credential but no TEE, an enroller M that is no node's
 * organisation's but its own, a mesh in which it governs genuine images, and all evidence
 * ever made. What it cannot do is make evidence: that is a genuine node's own view of its
 * conversation.
 *
 * -DNO_x takes field x out of what a verifier compares. -DEXPORTER_KNOWN is a TLS exporter
 * that binds nothing, -DUNORDERED are HELLOs whose places are not told apart.
 *
 * -DFAST is fast mode: A and B have made their pair keys in a full exchange; now every run is
 * a new exchange of purpose 1 in which a MAC stands in place of evidence. Pair ids are
 * public, so the attacker asks whom it likes for a MAC. -DNO_BIND takes the binder out of the
 * MAC, -DNO_DIRECTION the attester's role out of the pair key, -DMAC_OVER_CHANNEL is a MAC
 * over HELLOs and exporter value alone.
 */

#ifndef NR
#define NR 3 /* runs */
#endif

/* Who. 0 is nobody. */
#define A 1 /* genuine nodes */
#define B 2
#define E 3 /* the attacker's identity: keys and a Credential, no TEE */
#define N 4 /* an honest enroller */
#define M 5 /* the attacker's enroller */

/* What a run does. Verifiers are numbered above those that they verify. */
#define NODE 1      /* purposes 1 and 2: proves itself, and verifies */
#define ISSUE 2     /* purpose 3, the node */
#define ANSWER 3    /* purpose 4, the node */
#define ENROL 4     /* purpose 5, the node */
#define LOOK 5      /* purpose 3, a client */
#define CHALLENGE 6 /* purpose 4, a client */
#define GRANT 7     /* purpose 5, the enroller */

/* Contents of the HELLO fields: no shape is another's, as on the wire. 0 is empty. */
#define HELLO(nonce, credential) ((nonce) * 8 + (credential))
#define NONCE(nonce) (64 + (nonce))
#define KEYS(id, cosigner) (128 + (id) * 8 + (cosigner))

/* Where node B lives. A and every verifier but B live in mesh 1, incarnation 2. */
byte bMesh, bInc;
#define meshOf(id) ((id) == B -> bMesh : 1)
#define incOf(id) ((id) == B -> bInc : 2)

/* A run, and what it knows. */
byte what[NR];
byte purpose[NR], mesh[NR], inc[NR];
byte me[NR];           /* a node or an enroller, 0 for a client */
byte peer[NR];         /* whom it believes to talk with; 0 for a client, which has no name */
byte role[NR];         /* its own in TLS: 1 client, 2 server */
byte conn[NR];         /* its TLS connection, 0 without one; a number is a secret of its two ends */
byte partner[NR];      /* 1 + the honest run at the other end, 0 if the attacker is there */
bool taken[NR];        /* the other end is somebody for good */
byte helloI[NR], helloR[NR], spki[NR];
bool made[NR];         /* its evidence exists */
bool accepted[NR];     /* it accepted its peer */
byte used[NR];         /* how often its evidence was accepted */

byte r, x, y; /* of the start alone */

/* Runs stand in one order of kinds: another order is the same world again. */
#define first(kind) (r == 0 || what[(r == 0 -> 0 : r - 1)] >= kind)

inline honest(v) { if :: v = A :: v = B fi }
inline identity(v) { if :: v = A :: v = B :: v = E fi }

/* nonce picks what the attacker may say: the nonce of any other run, or its own (0). */
inline nonce(v) {
  v = 0;
  do
  :: v < NR -> v++
  :: break
  od;
  if
  :: v == r + 1 -> v = 0
  :: else
  fi
}

/* An earlier run for which cond holds; not executable if there is none. */
#define free(i) (i < r && !taken[i])
inline earlierNode() {
  if
  :: free(0) && what[0] == NODE -> x = 0
#if NR > 2
  :: free(1) && what[1] == NODE -> x = 1
#endif
#if NR > 3
  :: free(2) && what[2] == NODE -> x = 2
#endif
  fi
}
inline earlier(kind, id) {
  if
  :: free(0) && what[0] == kind && (id == 0 || peer[0] == id) && conn[0] != 0 -> x = 0
#if NR > 2
  :: free(1) && what[1] == kind && (id == 0 || peer[1] == id) && conn[1] != 0 -> x = 1
#endif
#if NR > 3
  :: free(2) && what[2] == kind && (id == 0 || peer[2] == id) && conn[2] != 0 -> x = 2
#endif
  fi
}

/* The attacker is at the other end; or the run x is, and nobody between them. */
inline alone() { conn[r] = r + 1; partner[r] = 0 }
inline join() { conn[r] = conn[x]; partner[r] = x + 1; partner[x] = r + 1; taken[r] = true; taken[x] = true }

inline be(id) { me[r] = id; mesh[r] = meshOf(id); inc[r] = incOf(id) }
inline is(kind, p) { what[r] = kind; purpose[r] = p }

inline say(own, heard) {
  if
  :: role[r] == 1 -> helloI[r] = own; helloR[r] = heard
  :: else -> helloI[r] = heard; helloR[r] = own
  fi
}

/* A HELLO names its sender by the Credential in it, which must be that of the TLS peer, and
 * carries mesh and incarnation, which must be the receiver's: so it is a nonce and a name. */
inline startNode() {
  if
  :: alone(); honest(x); be(x); identity(y);
     if
     :: y == me[r] -> y = E /* nobody talks to itself */
     :: else
     fi;
     peer[r] = y;
     if :: role[r] = 1 :: role[r] = 2 fi;
#ifdef FAST
     is(NODE, 1);
#else
     if :: is(NODE, 1) :: is(NODE, 2) fi;
#endif
     nonce(x); say(HELLO(r + 1, me[r]), HELLO(x, peer[r]))
  :: earlierNode(); /* two honest nodes: TLS carries what they say, and for which purpose */
     if
     :: peer[x] != E && meshOf(peer[x]) == mesh[x] && incOf(peer[x]) == inc[x] ->
        be(peer[x]); peer[r] = me[x]; role[r] = 3 - role[x]; is(NODE, purpose[x]); join();
        say(HELLO(r + 1, me[r]), HELLO(x + 1, peer[r]));
        helloI[x] = helloI[r]; helloR[x] = helloR[r]
     :: else /* they refuse each other's HELLO */
     fi
#ifndef FAST
  :: earlierNode(); /* a re-attestation on the connection of an earlier run */
     be(me[x]); peer[r] = peer[x]; role[r] = role[x]; is(NODE, 2); conn[r] = conn[x];
     taken[r] = true; taken[x] = true;
     nonce(x); say(HELLO(r + 1, me[r]), HELLO(x, peer[r]))
#endif
  fi;
  made[r] = (role[r] == 1) /* the initiator proves itself first */
}

inline startAttester() {
  honest(x); be(x); role[r] = 2; made[r] = true;
  if
  :: first(ISSUE) -> is(ISSUE, 3); spki[r] = me[r]
  :: first(ANSWER) -> is(ANSWER, 4); alone(); nonce(x); helloI[r] = NONCE(x)
  :: earlier(CHALLENGE, me[r]); is(ANSWER, 4); join(); helloI[r] = helloI[x]
  :: first(ENROL) -> is(ENROL, 5); role[r] = 1; helloR[r] = KEYS(me[r], me[r]);
     if
     :: peer[r] = N /* by file: the host carries nonce and evidence */
     :: peer[r] = M
     :: peer[r] = M; alone()
     fi;
     nonce(x); helloI[r] = NONCE(x)
  :: earlier(GRANT, me[r]); /* N's TLS key is pinned: nobody else ends this connection */
     is(ENROL, 5); role[r] = 1; helloR[r] = KEYS(me[r], me[r]); peer[r] = N; join();
     helloI[r] = helloI[x]; helloR[x] = helloR[r]
  fi
}

inline startVerifier() {
  mesh[r] = 1; inc[r] = 2; role[r] = 1;
  if
  :: first(LOOK) -> is(LOOK, 3);
     if
     :: spki[r] = E; identity(y); peer[r] = y
     :: honest(y); peer[r] = y; spki[r] = y /* TLS ends in the node, which speaks for itself */
     fi
  :: first(CHALLENGE) -> is(CHALLENGE, 4); alone(); identity(y); peer[r] = y; helloI[r] = NONCE(r + 1)
  :: first(GRANT) -> is(GRANT, 5); me[r] = N; role[r] = 2; helloI[r] = NONCE(r + 1);
     if
     :: alone()
     :: skip /* by file */
     fi;
     /* Proofs of possession hinder nobody: identity keys are stolen, a cosigner key is the
      * attacker's own or its owner signed the same binder. */
     identity(x); identity(y); peer[r] = x; helloR[r] = KEYS(x, y)
  fi
}

/* What verifier v compares evidence a with, field by field. */

#define wantRole(v) (what[v] == GRANT || what[v] == NODE && role[v] == 2 -> 1 : 2)

#ifdef NO_PURPOSE
#define okPurpose(v, a) true
#else
#define okPurpose(v, a) (purpose[a] == purpose[v])
#endif

#ifdef NO_ROLE
#define okRole(v, a) true
#else
#define okRole(v, a) (role[a] == wantRole(v))
#endif

#ifdef NO_MESH_ID /* neither in the binder nor in the report data */
#define okMesh(v, a) true
#else
#define okMesh(v, a) (mesh[a] == mesh[v])
#endif

#ifdef NO_INCARNATION
#define okInc(v, a) true
#else
#define okInc(v, a) (inc[a] == inc[v])
#endif

#ifdef NO_ATTESTER /* neither in binder and report data nor in the HELLO_R of an enrolment */
#define okAttester(v, a) true
#define keys(h) (h >= 128 -> 128 + (h & 7) : h)
#else
#define okAttester(v, a) (me[a] == peer[v])
#define keys(h) (h)
#endif

#ifdef NO_VERIFIER
#define okVerifier(v, a) true
#else
#define okVerifier(v, a) (peer[a] == me[v])
#endif

#define sameI(v, a) (helloI[a] == helloI[v])
#define sameR(v, a) (keys(helloR[a]) == keys(helloR[v]))
#if defined(NO_HELLO_I)
#define okHellos(v, a) sameR(v, a)
#elif defined(NO_HELLO_R)
#define okHellos(v, a) sameI(v, a)
#elif defined(UNORDERED)
#define okHellos(v, a) (sameI(v, a) && sameR(v, a) || helloI[a] == helloR[v] && helloR[a] == helloI[v])
#else
#define okHellos(v, a) (sameI(v, a) && sameR(v, a))
#endif

#ifdef NO_SPKI
#define okSPKI(v, a) true
#else
#define okSPKI(v, a) (spki[a] == spki[v])
#endif

/* The exporter's secret is the connection's and its context is both HELLOs. */
#if defined(NO_EKM) || defined(EXPORTER_KNOWN)
#define okEKM(v, a) true
#else
#define okEKM(v, a) (conn[a] == conn[v] && (conn[v] == 0 || helloI[a] == helloI[v] && helloR[a] == helloR[v]))
#endif

#define quoted(v, a) (okPurpose(v, a) && okRole(v, a) && okMesh(v, a) && okInc(v, a) && okAttester(v, a) && \
  okVerifier(v, a) && okHellos(v, a) && okSPKI(v, a) && okEKM(v, a))

#ifdef FAST
#ifdef NO_DIRECTION
#define key(from, to) (from + to)
#else
#define key(from, to) (8 * from + to)
#endif
#define okKey(v, a) (peer[v] != E && peer[a] != E && key(me[a], peer[a]) == key(peer[v], me[v]))
#if defined(NO_BIND)
#define match(v, a) okKey(v, a)
#elif defined(MAC_OVER_CHANNEL)
#define match(v, a) (okKey(v, a) && okHellos(v, a) && okEKM(v, a))
#else
#define match(v, a) (okKey(v, a) && quoted(v, a))
#endif
#else
#define match(v, a) quoted(v, a)
#endif

/* The attacker delivers what it likes, but not into a connection of two others. */
#define delivered(v, a) (made[a] && (partner[v] == 0 || partner[v] == a + 1))
#define verifies(v) (!accepted[v] && (what[v] == NODE || what[v] >= LOOK))

#ifdef EXPORTER_KNOWN
#define sameConn(v, a) true /* such an exporter promises less */
#else
#define sameConn(v, a) (conn[a] == conn[v])
#endif

/* -DONLY=p looks at one purpose. */
#ifdef ONLY
#define holds(x) (purpose[v] != ONLY || (x))
#else
#define holds(x) (x)
#endif

/* What v believes from now on: that its peer itself, a genuine node of this mesh and
 * incarnation, holds this very conversation with it, in the other role, and no other. */
inline agreed(v, a) {
#ifdef REACH
  assert(purpose[v] != REACH || !(partner[v] == a + 1 || REACH == 3)) /* that there is anything to accept */
#else
  assert(holds(me[a] == peer[v]));                  /* whom it believes to talk with */
  assert(holds(peer[a] == me[v]));                  /* who believes to talk with it */
  assert(holds(purpose[a] == purpose[v]));
  assert(holds(role[a] == wantRole(v)));
  assert(holds(mesh[a] == mesh[v] && inc[a] == inc[v]));
  assert(holds(sameConn(v, a)));
  assert(holds(helloI[a] == helloI[v]));            /* nonces, */
  assert(holds(helloR[a] == helloR[v]));            /* and the keys of an enrolment */
  assert(holds(purpose[v] != 3 || spki[v] == me[a])); /* a TLS key that only the node has */
  assert(holds(purpose[v] == 3 || used[a] == 1))    /* a certificate is for many, all else for one */
#endif
}

/* Said when a counterexample is replayed; run.sh puts it into words. */
#define view(i) purpose[i], role[i], conn[i], mesh[i], inc[i], me[i], peer[i], helloI[i], helloR[i], spki[i]
inline accept(v, a) {
  printf("ACCEPT %d %d %d %d %d %d %d %d %d %d ", view(v));
  printf("%d %d %d %d %d %d %d %d %d %d %d\n", view(a), v == a);
  accepted[v] = true;
  used[a]++;
  made[v] = made[v] || what[v] == NODE; /* the responder proves itself to a verified peer */
  agreed(v, a)
}

#define can(v, a) verifies(v) && delivered(v, a) && match(v, a)

active proctype world() {
  atomic {
#ifdef FAST
    bMesh = 1; bInc = 2;
#else
    if :: bMesh = 1 :: bMesh = 2 fi;
    if :: bInc = 1 :: bInc = 2 fi;
#endif
    do
    :: r < NR ->
       if
#ifndef FAST
       :: first(LOOK) -> startVerifier()
       :: first(ISSUE) -> startAttester()
#endif
       :: startNode()
       fi;
       x = 0; y = 0; r++
    :: else -> break
    od;
    r = 0
  }
  do
  :: atomic { can(0, 0) -> accept(0, 0) }
  :: atomic { can(0, 1) -> accept(0, 1) }
  :: atomic { can(1, 0) -> accept(1, 0) }
  :: atomic { can(1, 1) -> accept(1, 1) }
#if NR > 2
  :: atomic { can(0, 2) -> accept(0, 2) }
  :: atomic { can(1, 2) -> accept(1, 2) }
  :: atomic { can(2, 0) -> accept(2, 0) }
  :: atomic { can(2, 1) -> accept(2, 1) }
  :: atomic { can(2, 2) -> accept(2, 2) }
#endif
#if NR > 3
  :: atomic { can(0, 3) -> accept(0, 3) }
  :: atomic { can(1, 3) -> accept(1, 3) }
  :: atomic { can(2, 3) -> accept(2, 3) }
  :: atomic { can(3, 0) -> accept(3, 0) }
  :: atomic { can(3, 1) -> accept(3, 1) }
  :: atomic { can(3, 2) -> accept(3, 2) }
  :: atomic { can(3, 3) -> accept(3, 3) }
#endif
  :: break
  od
}
