// What the pages do beyond links and forms. Without it everything can still be taken, decided, skipped and taken back.
import "./keys.js";
import "./lease.js";
import "./live.js";
import "./moments.js";
import "./picture.js";
