from engines.compiled import use

use()
